"""The index stage: what it writes, when it does nothing, what it refuses."""

import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.search.build import Shape
from laionkit.search.searcher import Searcher
from laionkit.stages.index import IndexConfig, explain_index, index
from tests.search.datasets import add_embeddings, clustered

VECTORS = clustered(300, 16)


@pytest.fixture
def dataset(tmp_path):
    add_embeddings(tmp_path, "00000", VECTORS[:200])
    add_embeddings(tmp_path, "00001", VECTORS[200:])
    return tmp_path


def first_hit(dataset, vector) -> str:
    return str(Searcher(dataset).search(vector=vector, k=1).key[0])


def test_a_second_run_does_nothing(dataset):
    first, second = index(str(dataset)), index(str(dataset))
    assert (first.counts.ok, first.skipped) == (300, 0)
    assert (second.counts.ok, second.skipped) == (300, 1)


def test_small_is_exact_and_large_has_lists(dataset):
    index(str(dataset))
    assert json.loads((dataset / "index/toy/image.json").read_text())["index_key"] == "SQfp16"
    again = Runner(fresh=True, yes=True)
    index(str(dataset), IndexConfig(exact_mib=0), runner=again)
    described = json.loads((dataset / "index/toy/image.json").read_text())
    assert described["index_key"].startswith("IVF32,")
    assert (described["nb vectors"], described["vectors dimension"]) == (300, 16)
    assert described["pending rows"] == 0


def test_a_build_that_failed_binds_nobody_to_its_settings(dataset):
    path = dataset / "embeddings/toy/img_emb/img_emb_00001.npy"
    kept = path.read_bytes()
    broken = np.load(path)
    broken[3] = 0
    np.save(path, broken)
    with pytest.raises(InputError, match="row 3 holds only zeros"):
        index(str(dataset), IndexConfig(kind="ivf", lists=8))
    path.write_bytes(kept)
    index(str(dataset), IndexConfig(kind="exact"))
    with pytest.raises(StaleOutput, match="kind='exact'"):
        index(str(dataset), IndexConfig(kind="ivf"))


def test_new_shards_are_found_after_another_run(dataset):
    index(str(dataset))
    fresh = clustered(50, 16, seed=9)
    keys = add_embeddings(dataset, "00002", fresh)
    assert index(str(dataset)).counts.ok == 350
    assert first_hit(dataset, fresh[7]) == keys[7]


def test_another_config_is_stale(dataset):
    index(str(dataset))
    with pytest.raises(StaleOutput, match="--kind auto"):
        index(str(dataset), IndexConfig(kind="ivf"))


def test_equal_inputs_give_equal_files(dataset, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    add_embeddings(other, "00000", VECTORS[:200])
    add_embeddings(other, "00001", VECTORS[200:])
    made = []
    for place in (dataset, other):
        index(str(place), IndexConfig(kind="ivf"))
        record = next(StageRecords(Folder(place), "index/toy").all())
        made.append({role: entry.sha256 for role, entry in record.files.items()})
    assert made[0] == made[1]


def test_any_float_type_and_memory_order_is_taken(tmp_path):
    add_embeddings(tmp_path, "00000", np.asfortranarray(VECTORS[:100].astype(np.float32)))
    add_embeddings(tmp_path, "00001", VECTORS[100:200].astype(">f4"))
    add_embeddings(tmp_path, "00002", 7 * VECTORS[200:].astype(np.float64))
    index(str(tmp_path))
    for row in (3, 103, 203):
        hits = Searcher(tmp_path).search(vector=VECTORS[row], k=1)
        assert hits.match[0] == pytest.approx(1, abs=1e-3)
        assert hits.key[0] == f"{row // 100:05d}{row % 100:04d}"


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.full((3, 16), np.nan, np.float16), r"img_emb_00002.npy row 0 holds NaN"),
        (np.array([[1.0] * 16, [0.0] * 16], np.float16), r"row 1 holds only zeros"),
        (np.ones((3, 16), np.int8), "holds int8"),
        (clustered(5, 12), "12 dimensions, the others 16"),
        (np.ones((5, 0), np.float16), "img_emb_00002.npy holds vectors of 0 dimensions"),
    ],
)
def test_unusable_vectors_are_refused_by_file_and_row(dataset, vectors, message):
    facts = {"dim": 16}
    add_embeddings(dataset, "00002", vectors, facts=facts)
    with pytest.raises(InputError, match=message):
        index(str(dataset))
    assert not (dataset / "index/toy/segments.json").exists()


@pytest.mark.parametrize("vector", [[1.0], [0.6, 0.8]])
def test_vectors_that_are_all_the_same_are_all_found(tmp_path, vector):
    add_embeddings(tmp_path, "00000", np.repeat(np.array([vector], np.float16), 500, axis=0))
    index(str(tmp_path), IndexConfig(kind="ivf", evaluate=3))
    searcher = Searcher(tmp_path)
    assert searcher.search(vector=vector, k=600).key.nunique() == 500
    assert len(searcher.search(vector=vector, k=600, dedup=0.99)) == 1


def test_counts_that_disagree_name_both_files(dataset):
    path = "embeddings/toy/metadata/metadata_00001.parquet"
    Folder(dataset).write_table(path, pa.table({"image_path": ["a", "b"]}))
    message = r"metadata_00001.parquet holds 2 rows and .*img_emb_00001.npy holds 100"
    with pytest.raises(InputError, match=message):
        index(str(dataset))


def test_vectors_that_are_not_what_the_record_says_are_refused(dataset):
    np.save(dataset / "embeddings/toy/img_emb/img_emb_00001.npy", VECTORS[:7])
    with pytest.raises(InputError, match="holds 7 vectors and its record says 100"):
        index(str(dataset))


@pytest.mark.parametrize("file", ["vectors.index", "lists.index", "rows.arrow"])
def test_a_truncated_index_is_refused(dataset, file):
    index(str(dataset), IndexConfig(kind="ivf"))
    path = dataset / "index/toy/segments/00001" / file
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(InputError, match="run laionkit index"):
        Searcher(dataset)


def test_a_list_file_short_of_its_last_row_is_refused(dataset):
    index(str(dataset), IndexConfig(kind="ivf"))
    path = dataset / "index/toy/segments/00001/lists.index"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="run laionkit index --fresh"):
        Searcher(dataset)


def test_damaged_rows_are_refused_before_they_are_read(dataset):
    index(str(dataset))
    path = dataset / "index/toy/segments/00001/rows.arrow"
    data = bytearray(path.read_bytes())
    with pa.ipc.open_file(pa.memory_map(str(path))) as file:
        offsets = file.get_batch(0)["caption"].buffers()[1].to_pybytes()[: 4 * 301]
    at = data.index(offsets)
    data[at + 4 * 7 : at + 4 * 8] = np.int32(2**30).tobytes()  # row 7 begins a gigabyte on
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"rows.arrow is damaged: run laionkit index --fresh"):
        first_hit(dataset, VECTORS[7])
    with pytest.raises(InputError, match=r"rows.arrow is damaged"):
        Searcher(dataset).search(vector=VECTORS[9], k=300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 8}, "vectors of 16 dimensions, and the index says 8"),
        ({"segments": []}, "malformed"),
        ({"twice": True}, "malformed"),
        ({"name": "../../elsewhere"}, "malformed"),
        ({"rows": 7}, "300 vectors, and the index says 7"),
        ({"dead": 3, "dead_file": "segments/00001/dead-00001.bits"}, "does not hold the 3 rows"),
        ({"dead_file": "../secret"}, "malformed"),
    ],
)
def test_a_pointer_that_tells_untruths_is_refused(dataset, change, message):
    index(str(dataset))
    path = dataset / "index/toy/segments.json"
    told = json.loads(path.read_text())
    (segment,) = told["segments"]
    (dataset / "index/toy/segments/00001/dead-00001.bits").write_bytes(bytes(38))
    if change.pop("twice", False):
        told["segments"] *= 2
    for name, value in change.items():
        (told if name in told else segment)[name] = value
    path.write_text(json.dumps(told))
    with pytest.raises(InputError, match=message):
        Searcher(dataset)


def test_a_pointer_that_is_no_json_says_what_to_do(dataset):
    index(str(dataset))
    pointer = dataset / "index/toy/segments.json"
    pointer.write_text("{")
    for work in (Searcher, index):
        with pytest.raises(InputError, match="delete it and run laionkit index --fresh"):
            work(str(dataset))
    pointer.unlink()
    index(str(dataset), runner=Runner(fresh=True, yes=True))
    assert first_hit(dataset, VECTORS[7]) == "000000007"


def test_a_dataset_without_embeddings_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="laionkit embed"):
        index(str(tmp_path))
    with pytest.raises(InputError, match="laionkit index"):
        Searcher(tmp_path)


def test_the_model_is_chosen_by_name_where_there_are_several(dataset):
    add_embeddings(dataset, "00000", clustered(40, 8), model="other")
    with pytest.raises(InputError, match="other, toy: choose with --as"):
        index(str(dataset))
    index(str(dataset), IndexConfig(as_name="other"))
    assert Searcher(dataset).dim == 8
    index(str(dataset), IndexConfig(as_name="toy"))
    assert Searcher(dataset, "toy").dim == 16
    with pytest.raises(InputError, match="did you mean toy"):
        Searcher(dataset, "toi")


def test_little_memory_means_smaller_blocks_and_samples():
    small, large = Shape(4000, memory_mib=64), Shape(4000, memory_mib=4096)
    assert small.block_rows(512) < large.block_rows(512)
    assert 4000 <= small.sample_rows(512) < large.sample_rows(512)
    assert small.filtered_queries() < large.filtered_queries() == 300
    with pytest.raises(ConfigError, match="give --memory-mib 6867"):
        small.check(100_000_000)


def test_a_segment_is_the_same_whatever_the_block(dataset, tmp_path_factory):
    other = tmp_path_factory.mktemp("small")
    add_embeddings(other, "00000", VECTORS[:200])
    add_embeddings(other, "00001", VECTORS[200:])
    index(str(dataset), IndexConfig(kind="ivf", lists=8))
    index(str(other), IndexConfig(kind="ivf", lists=8, memory_mib=64))
    files = [place / "index/toy/image.index" for place in (dataset, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_explanation_names_the_choice_its_bytes_and_the_others(dataset):
    before = explain_index(str(dataset))
    assert [(option.name, option.chosen) for option in before.options] == [
        ("scan", True),
        ("32 lists, 8-bit codes", False),
        ("32 lists, 4-bit codes", False),
    ]
    scan, lists, short = before.options
    assert short.code_bytes == 300 * 16
    assert (scan.vector_bytes, scan.code_bytes, scan.recall) == (300 * 16 * 2, 0, 1)
    assert (lists.code_bytes, lists.recall) == (300 * 24, 0.95)
    assert not before.segments
    assert not (dataset / "index").exists()
    config = IndexConfig(kind="ivf", evaluate=20)
    index(str(dataset), config)
    after = explain_index(str(dataset), config)
    assert after.options[0].recall == min(cell["recall"] for cell in after.measured)
    assert after.segments[0]["rows"] == 300
    assert "--kind ivf" in after.why
    for other in ({"codes_mib": 0}, {"recall": 0.97}):  # nothing was measured of those
        explained = explain_index(str(dataset), IndexConfig(kind="ivf", **other))
        assert explained.options[0].recall_is == "is what probes are tuned for"


def test_codes_that_do_not_fit_the_memory_for_them_are_shorter(dataset):
    config = IndexConfig(kind="ivf", codes_mib=0)
    index(str(dataset), config)
    described = json.loads((dataset / "index/toy/image.json").read_text())
    assert described["index_key"] == "IVF32,SQ4"
    found = explain_index(str(dataset), config)
    assert "--codes-mib 0" in found.why
    assert (found.options[0].name, found.options[0].chosen) == ("32 lists, 4-bit codes", True)
    assert found.segments[0]["code_bytes"] == 300 * 16 == found.options[0].code_bytes
    theirs = faiss.read_index(str(dataset / "index/toy/image.index"))
    theirs.nprobe = theirs.nlist
    keys = pq.read_table(dataset / "index/toy/metadata")["image_path"].to_pylist()
    _, rows = theirs.search(VECTORS[7:8].astype(np.float32), 3)
    assert keys[rows[0][0]] == "000000007"
    assert first_hit(dataset, VECTORS[7]) == "000000007"
