"""Takedowns: what is forgotten is found by no path any more, and equals never having been there."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder
from laionkit.core.runner import Runner
from laionkit.core.table import DatasetTable
from laionkit.search import execute
from laionkit.search.searcher import Searcher
from laionkit.stages.forget import ForgetConfig, forget
from laionkit.stages.index import IndexConfig, index
from laionkit.stages.query import QueryConfig, query_file
from laionkit.stages.subset import SubsetConfig, subset
from tests.search.datasets import add_embeddings, add_scores, assert_nearest, clustered

DIM, ROWS = 16, 900
VECTORS = clustered(ROWS + 300, DIM, seed=11)
GONE = np.array([5, 250, 251, 899])
YES = Runner(yes=True)


def key_of(row: int) -> str:
    return f"{row // 300:05d}{row % 300:04d}"


KEYS = [key_of(row) for row in range(ROWS)]


def add(dataset: Path, shard: int) -> None:
    keys = add_embeddings(dataset, f"{shard:05d}", VECTORS[300 * shard : 300 * shard + 300])
    add_scores(dataset, "taste", f"{shard:05d}", keys, np.arange(300) / 300)


@pytest.fixture(params=["exact", "ivf"])
def config(request, monkeypatch) -> IndexConfig:
    def worth(segment, k, matches):
        return segment.lists and matches > 50

    monkeypatch.setattr(execute, "worth_probing", worth)
    return IndexConfig(kind=request.param, lists=16 if request.param == "ivf" else None)


@pytest.fixture
def dataset(tmp_path, config) -> Path:
    for shard in range(3):
        add(tmp_path / "set", shard)
    index(str(tmp_path / "set"), config)
    return tmp_path / "set"


@pytest.fixture
def takedowns(tmp_path) -> str:
    path = tmp_path / "takedowns.txt"
    path.write_text("\n".join([*(key_of(row) for row in GONE), "no-such-key", ""]))
    return str(path)


def assert_gone(dataset: Path, gone: set[str], tmp_path: Path) -> None:
    """No path of a search shows one of `gone`, and each is as full as without them."""
    searcher = Searcher(dataset)
    left = searcher.count
    for key in sorted(gone):
        vector = VECTORS[KEYS.index(key)].astype(np.float32)
        found = [
            searcher.search(vector=vector, k=10),
            searcher.search(vector=vector, k=10, exact=True),
            searcher.search(vector=vector, k=10, where="taste >= 0"),
            searcher.search(vector=vector, k=10, dedup=0.999),
            searcher.search(like=key_of(6), k=10),
            *(searcher.search(vector=vector, k=10, page=page) for page in (1, 2, 3)),
        ]
        assert [len(hits) for hits in found] == [10] * len(found)
        everything = searcher.search(vector=vector, k=5000)
        assert len(everything) == left
        for hits in (*found, everything):
            assert not gone & set(hits.key)
        with pytest.raises(InputError, match="no key"):
            searcher.search(like=key)
    np.save(tmp_path / "many.npy", VECTORS[GONE])
    query_file(str(dataset), f"{tmp_path}/many.npy", f"{tmp_path}/hits.parquet", QueryConfig(k=50))
    assert not gone & set(pq.read_table(tmp_path / "hits.parquet")["key"].to_pylist())
    with DatasetTable(str(dataset)) as table:
        assert not gone & {key for (key,) in table.execute("SELECT key FROM dataset").fetchall()}


def test_what_is_forgotten_is_found_by_no_path(dataset, takedowns, config, tmp_path):
    gone = {key_of(row) for row in GONE}
    report = forget(str(dataset), ForgetConfig(keys=takedowns), runner=YES)
    assert report.counts.ok == 4
    assert "1 of the keys are not in the dataset" in report.notes[0]
    assert "4 rows are never found again" in report.notes[1]
    assert_gone(dataset, gone, tmp_path)
    again = forget(str(dataset), ForgetConfig(keys=takedowns), runner=YES)
    assert again.counts.ok == 0
    index(str(dataset), config)
    assert_gone(dataset, gone, tmp_path)
    index(str(dataset), config.model_copy(update={"compact": True}))
    assert_gone(dataset, gone, tmp_path)
    place = dataset / "index/toy"
    assert faiss.read_index(str(place / "image.index")).ntotal == ROWS - 4
    published = pq.read_table(place / "metadata")["image_path"].to_pylist()
    assert sorted(published) == sorted(set(KEYS) - gone)
    index(str(dataset), config, runner=Runner(fresh=True, yes=True))
    assert_gone(dataset, gone, tmp_path)


def test_appended_forgotten_and_compacted_equals_built_at_once(
    dataset, takedowns, config, tmp_path
):
    add(dataset, 3)
    index(str(dataset), config)
    forget(str(dataset), ForgetConfig(keys=takedowns), runner=YES)
    kept = np.setdiff1d(np.arange(ROWS + 300), GONE)
    query = VECTORS[7].astype(np.float32)
    hits = Searcher(dataset).search(vector=query, k=2000, exact=True)
    assert_nearest(hits, [key_of(row) for row in kept], VECTORS[kept], query, 2000)
    index(str(dataset), config.model_copy(update={"compact": True}))
    other = tmp_path / "other"
    for shard in range(4):
        add(other, shard)
    forget(str(other), ForgetConfig(keys=takedowns), runner=YES)
    index(str(other), config)
    files = ["vectors.index", "rows.arrow", *(["lists.index"] if config.lists else [])]
    for file in files:
        ours, theirs = (
            next((place / "index/toy/segments").glob(f"*/{file}")).read_bytes()
            for place in (dataset, other)
        )
        assert ours == theirs
    assert (
        Searcher(dataset)
        .search(vector=query, k=50)
        .equals(Searcher(other).search(vector=query, k=50))
    )


def test_a_filter_takes_down_in_every_index_and_in_subsets(dataset, tmp_path):
    add_embeddings(dataset, "00000", VECTORS[:300], model="other")
    index(str(dataset), IndexConfig(as_name="other"))
    recipe = SubsetConfig(name="best", where="taste >= 0.5", as_="parquet")
    assert subset(str(dataset), recipe).counts.ok == 450
    where = "taste >= 0.9 AND shard = '00000'"
    with pytest.raises(ConfigError, match=r"30 of 900 samples .* add --yes"):
        forget(str(dataset), ForgetConfig(where=where))
    report = forget(str(dataset), ForgetConfig(where=where), runner=YES)
    assert report.counts.ok == 30
    assert any("subset best still holds 30" in note for note in report.notes)
    for model in ("toy", "other"):
        hits = Searcher(dataset, model).search(vector=VECTORS[290], k=1000)
        assert not {key_of(row) for row in range(270, 300)} & set(hits.key)
    assert subset(str(dataset), recipe).counts.ok == 420
    again = forget(str(dataset), ForgetConfig(where=where), runner=YES)
    assert again.notes == ("no sample is meant: nothing was taken down",)


def test_all_may_be_forgotten(dataset, config):
    forget(str(dataset), ForgetConfig(where="taste >= 0"), runner=YES)
    assert len(Searcher(dataset).search(vector=np.ones(DIM))) == 0
    with pytest.raises(InputError, match="taken down"):
        index(str(dataset), config.model_copy(update={"compact": True}))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "--keys FILE, or --where SQL"),
        ({"keys": "a.txt", "where": "taste > 1"}, ConfigError, "--keys FILE, or --where SQL"),
        ({"keys": "/nowhere/a.txt"}, InputError, "a.txt"),
        ({"where": "taste2 > 1"}, ConfigError, "did you mean taste"),
    ],
)
def test_a_takedown_that_does_not_say_which_is_refused(tmp_path, settings, error, message):
    add(tmp_path, 0)
    with pytest.raises(error, match=message):
        forget(str(tmp_path), ForgetConfig(**settings), runner=YES)
    assert not Folder(tmp_path).exists(".laionkit/forgotten.parquet")


def test_keys_come_from_parquet_too(tmp_path):
    add(tmp_path, 0)
    pq.write_table(pa.table({"key": [key_of(3), key_of(3), None]}), tmp_path / "keys.parquet")
    report = forget(str(tmp_path), ForgetConfig(keys=f"{tmp_path}/keys.parquet"), runner=YES)
    assert report.counts.ok == 1
