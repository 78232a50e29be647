"""Scores of hits and filters over them: arrays in row order, refreshed without a rebuild."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laionkit.core.errors import ConfigError
from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.search import filter_tables
from laionkit.search.searcher import Searcher
from laionkit.stages.index import IndexConfig, index
from tests.search.datasets import add_embeddings, add_scores, clustered, commit

DIM = 16
VECTORS = clustered(900, DIM, seed=4)
TASTE = np.random.default_rng(5).random(900).astype(np.float32)
TASTE[17] = np.nan


@pytest.fixture(params=["exact", "ivf"])
def dataset(request, tmp_path) -> Path:
    for shard in range(3):
        rows = slice(300 * shard, 300 * shard + 300)
        keys = add_embeddings(tmp_path, f"{shard:05d}", VECTORS[rows])
        add_scores(tmp_path, "taste", f"{shard:05d}", keys[::-1], TASTE[rows][::-1])
    index(str(tmp_path), IndexConfig(kind=request.param, lists=12))
    return tmp_path


def arrays(dataset: Path) -> list[str]:
    return sorted(path.name for path in (dataset / "index/toy/segments").glob("*/scores/*"))


def vectors_written(dataset: Path) -> list[int]:
    files = (dataset / "index/toy/segments").glob("*/vectors.index")
    return [path.stat().st_mtime_ns for path in files]


def assert_scores(dataset: Path, taste: np.ndarray) -> None:
    searcher = Searcher(dataset)
    hits = searcher.search(vector=np.ones(DIM), k=5000)
    rows = [int(key[:5]) * 300 + int(key[5:]) for key in hits.key]
    assert np.array_equal(hits.taste, taste[rows], equal_nan=True)
    assert hits.taste.dtype == np.float32
    for where, keep in (
        ("taste >= 0.5", taste >= 0.5),
        ("taste >= 0.5 and original_width < 100", (taste >= 0.5) & (np.arange(900) % 300 < 100)),
        ("taste is null", np.isnan(taste)),
        ("not taste < 0.5", taste >= 0.5),
        ("taste > 0.2 and taste < 0.4", (taste > 0.2) & (taste < 0.4)),
    ):
        hits = searcher.search(vector=np.ones(DIM), k=5000, where=where)
        rows = sorted(int(key[:5]) * 300 + int(key[5:]) for key in hits.key)
        assert rows == np.flatnonzero(keep).tolist()
        assert hits.plan.matches == keep.sum()


def test_scores_lie_in_row_order_and_filters_read_them_there(dataset, monkeypatch):
    assert [name[:6] for name in arrays(dataset)] == ["taste-"]
    assert_scores(dataset, TASTE)
    monkeypatch.setattr(filter_tables.DatasetFilters, "batches", None)  # what joins by key
    searcher = Searcher(dataset)
    assert searcher.search(vector=np.ones(DIM), where="taste >= 0.5").plan.matches == sum(
        TASTE >= 0.5
    )
    with pytest.raises(TypeError):
        searcher.search(vector=np.ones(DIM), where="original_width < 5")


def test_new_scores_are_seen_at_once_and_laid_out_by_the_next_run(dataset):
    before, made = arrays(dataset), vectors_written(dataset)
    other = np.random.default_rng(6).random(900).astype(np.float32)
    for shard in range(3):
        rows = slice(300 * shard, 300 * shard + 300)
        keys = [f"{shard:05d}{row:04d}" for row in range(300)]
        add_scores(dataset, "taste", f"{shard:05d}", keys, other[rows])
    assert_scores(dataset, other)
    index(str(dataset), IndexConfig(kind=_kind(dataset), lists=12))
    assert len(arrays(dataset)) == 1
    assert arrays(dataset) != before
    assert vectors_written(dataset) == made
    assert_scores(dataset, other)


def test_columns_that_come_and_go_are_seen_by_a_searcher_that_is_open(dataset):
    searcher, query = Searcher(dataset), np.ones(DIM)
    assert len(searcher.search(vector=query, where="taste >= 0")) == 10
    keys = [f"00000{row:04d}" for row in range(300)]
    add_scores(dataset, "late", "00000", keys, np.arange(300, dtype=np.float32))
    assert searcher.search(vector=query, where="late >= 290").plan.matches == 10
    shutil.rmtree(dataset / "scores/late")
    shutil.rmtree(dataset / ".laionkit/score/late")
    with pytest.raises(ConfigError, match="no column is called late"):
        searcher.search(vector=query, where="late >= 291")
    assert len(searcher.search(vector=query, where="taste >= 0")) == 10


def test_shards_that_were_not_scored_have_none(dataset):
    fresh = clustered(50, DIM, seed=7)
    keys = add_embeddings(dataset, "00003", fresh)
    index(str(dataset), IndexConfig(kind=_kind(dataset), lists=12))
    assert len(arrays(dataset)) == 2
    hits = Searcher(dataset).search(vector=fresh[3], k=1)
    assert (hits.key[0], np.isnan(hits.taste[0])) == (keys[3], True)
    assert_scores_of_first(dataset)


def assert_scores_of_first(dataset: Path) -> None:
    hits = Searcher(dataset).search(vector=VECTORS[3], k=1)
    assert hits.taste[0] == TASTE[3]


def test_labels_are_shown_as_they_are(dataset):
    folder, records = Folder(dataset), StageRecords(Folder(dataset), "score/kind")
    records.begin(IndexConfig(), facts={"head": "kind"})
    for shard in ("00000", "00001"):
        keys = [f"{shard}{row:04d}" for row in range(300)]
        table = pa.table({"key": keys, "value": [f"of {key}" for key in keys]})
        commit(
            records,
            shard,
            300,
            {"scores": folder.write_table(f"scores/kind/{shard}.parquet", table)},
        )
    for _ in range(2):
        hits = Searcher(dataset).search(vector=VECTORS[3], k=2000)
        labelled = hits[hits["shard"] != "00002"]
        assert labelled.kind.tolist() == [f"of {key}" for key in labelled.key]
        assert hits[hits["shard"] == "00002"].kind.isna().all()
        index(str(dataset), IndexConfig(kind=_kind(dataset), lists=12))


def _kind(dataset: Path) -> str:
    made = StageRecords(Folder(dataset), "index/toy").made()
    assert made is not None
    return str(made.config["kind"])
