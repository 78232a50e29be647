"""metadata over HTTP, the hub and S3: ranges, cut connections, downloads kept and checked."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.progress import Event, Note
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.core.worklist import WorkList
from laionkit.stages.metadata import MetadataConfig, inspect, metadata
from tests.backends.range_server import COMMIT, serve


@pytest.fixture(scope="module")
def links(tmp_path_factory) -> Path:
    """A folder with a table of many pages: two narrow columns beside two wide ones."""
    folder = tmp_path_factory.mktemp("links")
    rng = np.random.default_rng(0)
    n = 40_000
    noise = [rng.bytes(60).hex() for _ in range(n)]
    table = pa.table({
        "url": [f"http://h{i % 9}.example/{noise[i]}.jpg" for i in range(n)],
        "text": [noise[-i] for i in range(n)],
        "similarity": rng.random(n),
        "punsafe": rng.random(n),
    })  # fmt: skip
    pq.write_table(
        table,
        folder / "links.parquet",
        row_group_size=20_000,
        data_page_size=32_768,
        use_dictionary=False,
    )
    (folder / "few.csv").write_text("url,text\nhttp://a.example/1,one\nhttp://a.example/2,two\n")
    return folder


def rows_of(dataset: Path) -> int:
    return WorkList.open(Folder(dataset)).total()


def test_a_table_comes_over_http_though_connections_are_cut(links, tmp_path):
    with serve(links, cut_every=3) as server:
        metadata([f"{server.url}/links.parquet", f"{server.url}/few.csv"], str(tmp_path / "d"))
    assert rows_of(tmp_path / "d") == 40_002


def test_inspect_of_a_remote_file_reads_little_of_it(links):
    with serve(links) as server:
        look = inspect([f"{server.url}/links.parquet"]).sources[0]
        sent = server.sent
    assert look.rows == 40_000
    assert sent < 0.15 * (links / "links.parquet").stat().st_size


def test_a_download_is_kept_resumed_and_checked(links, tmp_path):
    kept = tmp_path / "kept"
    with serve(links, cut_every=4) as server:
        source = f"{server.url}/links.parquet"
        config = MetadataConfig(download=str(kept))
        seen: list[Event] = []
        watcher = SimpleNamespace(emit=seen.append)
        metadata([source], str(tmp_path / "a"), config, runner=Runner(progress=watcher))
        (copy,) = kept.glob("*-links.parquet")
        assert [e.text for e in seen if isinstance(e, Note) and e.text.endswith(" MB")]
        assert copy.read_bytes() == (links / "links.parquet").read_bytes()
        sent = server.sent
        metadata([source], str(tmp_path / "b"), config)
        assert server.sent - sent < 100
        half = copy.read_bytes()[: copy.stat().st_size // 2]
        said = Path(f"{copy}.source.json").read_text()
        copy.unlink()
        Path(f"{copy}.part").write_bytes(half)
        Path(f"{copy}.part.json").write_text(said)
        server.sent = server.cut_every = 0
        metadata([source], str(tmp_path / "c"), config)
        assert server.sent == (links / "links.parquet").stat().st_size - len(half)
        copy.unlink()
        Path(f"{copy}.part").write_bytes(b"x" * len(half))
        Path(f"{copy}.part.json").write_text(said)
        with pytest.raises(InputError, match="its bytes have checksum"):
            metadata([source], str(tmp_path / "e"), config)
    assert rows_of(tmp_path / "c") == 40_000


def test_what_a_server_lacks_is_one_line(links, tmp_path):
    with serve(links) as server, pytest.raises(InputError, match="cannot be read") as caught:
        metadata([f"{server.url}/nothing.parquet"], str(tmp_path / "d"))
    assert "\n" not in str(caught.value)
    with serve(links, ranges=False) as server, pytest.raises(InputError, match="no ranges"):
        metadata([f"{server.url}/links.parquet"], str(tmp_path / "d"))


def test_a_hub_dataset_is_read_at_a_pinned_commit(links, tmp_path, monkeypatch):
    with serve(links) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        metadata(["hf://datasets/owner/name/links.parquet"], str(tmp_path / "d"))
    assert rows_of(tmp_path / "d") == 40_000
    record = StageRecords(Folder(tmp_path / "d"), "metadata").read("part-00000")
    assert list(record.inputs) == [f"hf://datasets/owner/name@{COMMIT}/links.parquet"]
    with pytest.raises(InputError, match="write hf://datasets/OWNER/NAME"):
        metadata(["hf://models/x"], str(tmp_path / "e"))


def test_s3_is_read_and_written(links, tmp_path, monkeypatch):
    moto_server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = moto_server.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("links")
        store.put_file(str(links / "links.parquet"), "links/in/links.parquet")
        metadata(["s3://links/in/*.parquet"], "s3://links/d", MetadataConfig(where="punsafe < 0.5"))
        with WorkList.open(Folder("s3://links/d")) as work:
            assert 19_000 < work.total() < 21_000
            assert work.read(work.shards()[-1], ["key"]).num_rows > 0
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> Path:
    """A table of ten row groups of which one alone holds high scores; captions are most of it."""
    folder = tmp_path_factory.mktemp("groups")
    rng = np.random.default_rng(1)
    n = 20_000
    score = rng.random(n) / 2
    score[14_500:14_600] = 0.9
    table = pa.table({
        "url": [f"http://h.example/{i}.jpg" for i in range(n)],
        "text": [rng.bytes(100).hex() for _ in range(n)],
        "score": score,
    })  # fmt: skip
    pq.write_table(table, folder / "links.parquet", row_group_size=2_000, use_dictionary=False)
    return folder


@pytest.mark.parametrize("ledger", ["counts", "full"])
def test_columns_of_row_groups_without_a_match_are_not_read(groups, tmp_path, ledger):
    path = groups / "links.parquet"
    config = MetadataConfig(where="score > 0.8", ledger=ledger)
    local = metadata([str(path)], str(tmp_path / "local"), config)
    with serve(groups) as server:
        remote = metadata([f"{server.url}/links.parquet"], str(tmp_path / "remote"), config)
        asked = server.asked
        sent = server.sent
    assert remote.counts == local.counts
    assert remote.counts.ok == 100
    parts = [tmp_path / name / "metadata/part-00000.parquet" for name in ("local", "remote")]
    assert parts[0].read_bytes() == parts[1].read_bytes()
    footer = pq.read_metadata(path)
    for group in range(footer.num_row_groups):
        text = footer.row_group(group).column(1)
        start = text.dictionary_page_offset or text.data_page_offset
        read = sum(
            max(0, min(last, start + text.total_compressed_size) - max(first, start))
            for first, last in asked
        )
        if group not in (0, 7, 9):  # first rows are looked at; the footer is read with the last
            assert read == 0, f"{read} bytes of captions of row group {group}"
    assert sent < 0.4 * path.stat().st_size


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses between tries, noted instead of waited for."""
    found: list[float] = []
    monkeypatch.setattr("laionkit.backends.range_files.time.sleep", found.append)
    return found


def test_a_server_that_is_overloaded_is_asked_again_with_longer_pauses(links, tmp_path, pauses):
    with serve(links, fail=7) as server:  # HEAD, then GET: twice a try
        metadata([f"{server.url}/links.parquet"], str(tmp_path / "d"))
    assert rows_of(tmp_path / "d") == 40_000
    assert pauses == [0.2, 0.4, 0.8]
    with serve(links, fail=1000) as server, pytest.raises(InputError, match="503") as caught:
        metadata([f"{server.url}/links.parquet"], str(tmp_path / "e"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("download", [False, True])
def test_a_file_that_changes_while_it_is_read_is_refused(links, tmp_path, download):
    (tmp_path / "served").mkdir()
    path = tmp_path / "served/links.parquet"
    path.write_bytes((links / "links.parquet").read_bytes())
    kept = tmp_path / "kept"
    config = MetadataConfig(download=str(kept) if download else "")
    first = 1 if download else 3

    def change(answered: int) -> None:
        if answered == first:
            path.write_bytes(path.read_bytes()[:-4] + b"PAR2")

    with serve(tmp_path / "served") as server:
        server.before = change
        with pytest.raises(InputError, match="changed on the server while it was read: run again"):
            metadata([f"{server.url}/links.parquet"], str(tmp_path / "d"), config)
        path.write_bytes((links / "links.parquet").read_bytes())
        server.before = lambda _: None
        metadata([f"{server.url}/links.parquet"], str(tmp_path / "d"), config)
    assert rows_of(tmp_path / "d") == 40_000


def test_what_was_begun_of_another_content_is_thrown_away(links, tmp_path):
    kept = tmp_path / "kept"
    config = MetadataConfig(download=str(kept))
    with serve(links) as server:
        source = f"{server.url}/links.parquet"
        seen: list[Event] = []
        watcher = SimpleNamespace(emit=seen.append)
        metadata([source], str(tmp_path / "a"), config, runner=Runner(progress=watcher))
        (copy,) = kept.glob("*-links.parquet")
        assert [e.text for e in seen if isinstance(e, Note) and e.text.endswith(" MB")]
        said = Path(f"{copy}.source.json").read_text()
        copy.unlink()
        Path(f"{copy}.part").write_bytes(b"x" * 1000)
        Path(f"{copy}.part.json").write_text(said.replace('identity": "', 'identity": "other'))
        metadata([source], str(tmp_path / "b"), config)
        copy.unlink()
        Path(f"{copy}.part").write_bytes(b"x" * ((links / "links.parquet").stat().st_size + 1))
        Path(f"{copy}.part.json").write_text(said)
        with pytest.raises(InputError, match="bytes came, not"):
            metadata([source], str(tmp_path / "c"), config)
        metadata([source], str(tmp_path / "c"), config)
    assert copy.read_bytes() == (links / "links.parquet").read_bytes()


@pytest.mark.parametrize("tells_size", [True, False])
def test_a_server_without_ranges_can_be_downloaded_from(links, tmp_path, pauses, tells_size):
    kept = tmp_path / "kept"
    with serve(links, ranges=False, tells_size=tells_size) as server:
        source = f"{server.url}/links.parquet"
        why = "sends no ranges" if tells_size else "does not say its size"
        with pytest.raises(InputError, match=f"{why}; add --download FOLDER"):
            metadata([source], str(tmp_path / "d"))
        server.cut_every = 2 if tells_size else 0
        server.requests = 1
        metadata([source], str(tmp_path / "d"), MetadataConfig(download=str(kept)))
    assert rows_of(tmp_path / "d") == 40_000
    assert pauses == ([0.2] if tells_size else [])
