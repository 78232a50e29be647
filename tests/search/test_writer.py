"""Segments come and go: appended, deleted, compacted, read while a writer writes."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.embeddings import list_embeddings, model_made
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder
from laionkit.core.forgotten import add_forgotten
from laionkit.core.records import StageRecords
from laionkit.search import rows, searcher, writer
from laionkit.search.build import Shape
from laionkit.search.layout import read_pointer
from laionkit.search.searcher import Searcher
from laionkit.search.writer import IndexWriter
from laionkit.stages.index import IndexConfig, index
from tests.search.datasets import add_embeddings, assert_nearest, clustered

DIM = 16
VECTORS = clustered(1000, DIM)


@pytest.fixture
def dataset(tmp_path) -> Path:
    for shard in range(8):
        add_embeddings(tmp_path, f"{shard:05d}", VECTORS[100 * shard : 100 * shard + 100])
    index(str(tmp_path))
    return tmp_path


def writer_of(dataset: Path | str) -> IndexWriter:
    folder = Folder(dataset)
    facts = model_made(folder, "toy").facts
    return IndexWriter(folder, "toy", facts, lambda rows, dim: Shape(0))


def segments(dataset: Path) -> list[int]:
    pointer = read_pointer(Folder(dataset).folder("index/toy"))
    assert pointer is not None
    return [info.rows for info in pointer.segments]


def remove_shard(dataset: Path, shard: str) -> None:
    StageRecords(Folder(dataset), "embed/toy").folder.remove(f"{shard}.json")


def key_of(row: int) -> str:
    return f"{row // 100:05d}{row % 100:04d}"


def check(dataset: Path, rows: np.ndarray) -> None:
    """Searching finds exactly what numpy finds among `rows` of VECTORS."""
    searcher = Searcher(dataset)
    keys = [key_of(row) for row in rows]
    for seed in range(5):
        query = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
        for k in (1, 10, 5000):
            hits = searcher.search(vector=query, k=k)
            assert_nearest(hits, keys, VECTORS[rows], query, k)
            assert hits.plan.exact
    hits = searcher.search(vector=query, k=50, where="original_width < 300")
    assert_nearest(
        hits, keys, VECTORS[rows], query, 50, np.array([int(k) % 1000 < 300 for k in keys])
    )


def test_new_shards_become_a_new_segment(dataset):
    add_embeddings(dataset, "00008", VECTORS[800:900])
    report = index(str(dataset))
    assert segments(dataset) == [800, 100]
    assert report.counts.ok == 900
    assert "100 rows are new" in report.notes[0]
    described = Folder(dataset).read_json("index/toy/image.json")
    assert (described["nb vectors"], described["pending rows"]) == (800, 100)
    check(dataset, np.arange(900))


def test_a_small_segment_leaves_the_time_to_a_large_one(dataset, monkeypatch):
    add_embeddings(dataset, "00008", VECTORS[800:900])
    index(str(dataset))
    budgets = []
    search = searcher.search_segment

    def watched(*args):
        budgets.append(args[5])
        return search(*args)

    monkeypatch.setattr(searcher, "search_segment", watched)
    Searcher(dataset).search(vector=VECTORS[7], latency_ms=90)
    assert budgets == pytest.approx([80, 10])


def test_a_compaction_leaves_one_segment_that_equals_a_rebuild(dataset, tmp_path_factory):
    for shard in (8, 9):
        add_embeddings(dataset, f"{shard:05d}", VECTORS[100 * shard : 100 * shard + 100])
        index(str(dataset))
    assert segments(dataset) == [800, 100, 100]
    index(str(dataset), IndexConfig(compact=True))
    assert segments(dataset) == [1000]
    check(dataset, np.arange(1000))
    other = tmp_path_factory.mktemp("rebuilt")
    shutil.copytree(dataset / "embeddings", other / "embeddings")
    shutil.copytree(dataset / ".laionkit/embed", other / ".laionkit/embed")
    index(str(other))
    for file in ("vectors.index", "rows.arrow"):
        ours = next((dataset / "index/toy/segments").glob(f"*/{file}"))
        assert (
            ours.read_bytes() == next((other / "index/toy/segments").glob(f"*/{file}")).read_bytes()
        )
    ours, theirs = dataset / "index/toy/image.index", other / "index/toy/image.index"
    assert ours.read_bytes() == theirs.read_bytes()


def test_rows_of_a_shard_that_is_gone_are_never_found(dataset):
    remove_shard(dataset, "00003")
    index(str(dataset))
    assert segments(dataset) == [800]
    check(dataset, np.array([row for row in range(800) if row // 100 != 3]))


def test_a_shard_embedded_anew_replaces_its_rows(dataset):
    add_embeddings(dataset, "00007", VECTORS[900:1000])
    index(str(dataset))
    assert segments(dataset) == [800, 100]
    found = Searcher(dataset).search(vector=VECTORS[950], k=1)
    assert (found.key[0], len(Searcher(dataset).search(vector=VECTORS[0], k=9999))) == (
        "000070050",
        800,
    )


def test_much_that_is_new_compacts_by_itself(dataset):
    for shard in (8, 9):
        add_embeddings(dataset, f"{shard:05d}", VECTORS[100 * shard : 100 * shard + 100])
    add_embeddings(dataset, "00010", VECTORS[:100])
    index(str(dataset))
    assert segments(dataset) == [1100]


READER = """
import sys
import numpy as np
from laionkit.search.searcher import Searcher

vector = np.ones(16)
print("ready", flush=True)
for line in sys.stdin:
    searcher = Searcher(sys.argv[1])
    first, again = (searcher.search(vector=vector, k=5000).key.tolist() for _ in range(2))
    filtered = searcher.search(vector=vector, k=5000, where="original_width >= 0")
    same = sorted(first) == sorted(again) == sorted(filtered.key) and len(set(first)) == len(first)
    print(len(first) if same else "torn", flush=True)
"""


def test_two_processes_see_one_state_while_a_writer_appends_and_compacts(dataset):
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(dataset)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )
        for _ in range(2)
    ]  # fmt: skip
    said: list[list[str]] = [[], []]

    def ask(number: int) -> None:
        pipe = readers[number]
        assert pipe.stdin is not None
        assert pipe.stdout is not None
        while not done.is_set() or len(said[number]) < 3:
            pipe.stdin.write("\n")
            said[number].append(pipe.stdout.readline().strip())

    done = threading.Event()
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    asking = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in asking:
        thread.start()
    for shard in (8, 9):
        add_embeddings(dataset, f"{shard:05d}", VECTORS[100 * shard : 100 * shard + 100])
        index(str(dataset))
    for _ in range(3):
        index(str(dataset), IndexConfig(compact=True))
    done.set()
    for thread in asking:
        thread.join()
    for reader in readers:
        reader.communicate()
        assert reader.returncode == 0
    for answers in said:
        assert {"800", "900", "1000"} >= set(answers)
        assert answers == sorted(answers, key=int)


def test_a_remote_index_is_searched_through_a_local_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("LAIONKIT_INDEXES", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}"
    keys = add_embeddings(url, "00000", VECTORS[:300])
    index(url, IndexConfig(kind="ivf", lists=8))
    for _ in range(2):
        hits = Searcher(url).search(vector=VECTORS[7], k=3, where="original_width < 100")
        assert hits.key[0] == keys[7]
    assert len(list((tmp_path / "cache").glob("*/segments/00001/*"))) == 3
    add_forgotten(Folder(url), pa.chunked_array([[keys[7]]]))
    assert writer_of(url).forget() == 1
    assert Searcher(url).search(vector=VECTORS[7], k=1).key[0] != keys[7]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_metadata_is_ordered_in_buckets_that_fit_the_memory(dataset, monkeypatch):
    """The same rows come out, in the same order, of many small buckets as of one."""
    refs = list_embeddings(Folder(dataset), "toy")
    position_of = np.random.default_rng(0).permutation(800)
    tables = {}
    for memory in (1, 2048):
        monkeypatch.setattr(rows, "BUCKET_ROWS", 256)
        found = list(
            rows.ordered_metadata(Folder(dataset), refs, "image_path", position_of, memory)
        )
        assert all(len(table) <= 256 for table in found)
        tables[memory] = pa.concat_tables(found)
    assert tables[1].equals(tables[2048])
    keys = tables[1]["image_path"].to_pylist()
    assert [keys[place] for place in position_of] == sorted(keys)


def test_memory_too_small_for_the_metadata_is_one_clear_line(dataset, monkeypatch):
    refs = list_embeddings(Folder(dataset), "toy")
    monkeypatch.setattr(rows, "MOST_BUCKETS", 1)
    with pytest.raises(ConfigError, match="--memory-mib"):
        rows.bucket_rows(Folder(dataset), refs, 100_000_000, 1)


def test_a_takedown_that_comes_while_a_build_goes_on_is_kept(dataset, monkeypatch):
    index(str(dataset))
    build, taken = writer.build_segment, iter([key_of(5), key_of(205), key_of(805)])

    def interrupted(*args, **kwargs):
        built = build(*args, **kwargs)
        add_forgotten(Folder(dataset), pa.chunked_array([[next(taken)]]))
        writer_of(dataset).forget()
        return built

    monkeypatch.setattr(writer, "build_segment", interrupted)
    add_embeddings(dataset, "00008", VECTORS[800:900])
    index(str(dataset))
    check(dataset, np.delete(np.arange(900), [5]))
    index(str(dataset), IndexConfig(compact=True))
    check(dataset, np.delete(np.arange(900), [5, 205]))
    described = Folder(dataset).read_json("index/toy/image.json")
    assert (described["pending rows"], described["dead rows"]) == (0, 1)


def test_a_view_that_a_killed_compaction_left_is_finished(dataset, monkeypatch):
    index(str(dataset))
    add_embeddings(dataset, "00008", VECTORS[800:900])
    with monkeypatch.context() as killed:
        killed.setattr(writer, "publish_view", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index(str(dataset), IndexConfig(compact=True))
    assert (seen_by_others(dataset), segments(dataset)) == (800, [900])
    index(str(dataset))
    assert seen_by_others(dataset) == 900


def seen_by_others(dataset: Path) -> int:
    """Rows of image.index, each of which is the picture that metadata/ says."""
    place = dataset / "index/toy"
    keys = pq.read_table(place / "metadata")["image_path"].to_pylist()
    _, found = faiss.read_index(str(place / "image.index")).search(np.float32(VECTORS[:300]), 1)
    assert [keys[row] for row in found[:, 0]] == [key_of(row) for row in range(300)]
    return len(keys)


def test_what_killed_builds_left_is_removed(dataset):
    index(str(dataset))
    place = dataset / "index/toy"
    ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    half, others = f".image.json.{ended.stdout.strip()}.tmp", f".segments.json.{os.getppid()}.tmp"
    for left in (half, others, "segments/00007/vectors.index"):
        (place / left).parent.mkdir(exist_ok=True)
        (place / left).write_bytes(b"half")
    index(str(dataset), IndexConfig(compact=True))
    assert [path.name for path in place.glob(".*.tmp")] == [others]
    assert [path.name for path in (place / "segments").iterdir()] == ["00002"]
    check(dataset, np.arange(800))


def test_two_builds_at_once_are_refused(dataset):
    index(str(dataset))
    with (dataset / "index/toy/.build.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="being built by another process"):
            index(str(dataset))
        check(dataset, np.arange(800))
