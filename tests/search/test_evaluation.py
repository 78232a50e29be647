"""Measured recall is what it is; many queries at once; an index explains itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.backends.knn import Neighbours
from laionkit.core.embeddings import list_embeddings
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder
from laionkit.core.status import status
from laionkit.search import evaluation, execute
from laionkit.search.evaluation import Queries, Ranking, draw_rows, evaluate
from laionkit.search.searcher import Searcher
from laionkit.search.source import TUNE, VectorSource
from laionkit.stages.index import IndexConfig, index
from laionkit.stages.query import QueryConfig, query_file
from tests.search.datasets import add_embeddings, clustered, unit

DIM, ROWS = 32, 3000
VECTORS = clustered(ROWS, DIM, seed=7)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluation")
    add_embeddings(place, "00000", VECTORS)
    index(str(place), IndexConfig(kind="ivf", lists=60))
    return place


def queries(count: int, seed: int = 1) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, DIM)))


def test_exact_answers_have_a_recall_of_one_in_every_cell(dataset):
    cells = evaluate(Searcher(dataset), {"texts": Queries.of_texts(queries(4))})
    assert len(cells) == 1 + 3 * 4
    assert all((cell.recall, cell.exact) == (1, 1) for cell in cells)


def test_a_probe_that_scores_too_little_is_seen(dataset, monkeypatch):
    monkeypatch.setattr(execute, "worth_probing", lambda segment, k, matches: True)
    monkeypatch.setattr(execute, "first_rows", lambda matches, k: 40)
    monkeypatch.setattr(execute, "promising_lists", lambda *_: np.empty(0, np.int64))
    texts = Queries.of_texts(queries(40))
    (cell,) = evaluate(Searcher(dataset), {"texts": texts}, selectivities=(1.0,))
    assert cell.recall < 0.9
    assert cell.exact == 0
    assert cell.low < cell.recall < cell.high


def test_a_picture_that_asks_is_neither_its_own_hit_nor_its_own_truth(dataset):
    searcher = Searcher(dataset)
    images = draw_rows(searcher, 8, seed=3)
    assert len(set(images.rows_Q)) == 8
    (cell,) = evaluate(searcher, {"images": images}, k=1, selectivities=(1.0,))
    assert (cell.count, cell.recall, cell.exact) == (8, 1, 1)


def test_a_filter_that_keeps_only_the_picture_that_asks_costs_no_recall(tmp_path):
    add_embeddings(tmp_path, "00000", VECTORS[:40])
    index(str(tmp_path))
    searcher = Searcher(tmp_path)
    cells = evaluate(searcher, {"images": draw_rows(searcher, 20, 0)}, selectivities=(0.025,))
    assert [cell.recall for cell in cells] == [1, 1, 1]


def test_finding_itself_alone_is_a_recall_of_nothing(dataset, monkeypatch):
    searcher = Searcher(dataset)
    images = draw_rows(searcher, 8, seed=3)
    answer, plan = searcher.nearest(images.vectors_QD[0], 1)

    def itself(query_D, k, keeps=None, *, exact=False):
        row = np.argmax(images.vectors_QD @ query_D)
        return Neighbours(answer.scores, images.rows_Q[[row]]), plan

    monkeypatch.setattr(searcher, "nearest", itself)
    (cell,) = evaluate(searcher, {"images": images}, k=1, selectivities=(1.0,))
    assert cell.recall == 0


@pytest.mark.parametrize("keeps", [1.0, 0.1, 0.001, 0.0])
def test_the_truth_is_what_sorting_all_rows_finds(monkeypatch, keeps):
    monkeypatch.setattr(evaluation, "_RANKED", 200)
    rng = np.random.default_rng(3)
    scores, keep = rng.standard_normal(5000).astype(np.float32), rng.random(5000) < keeps
    every = [row for row in np.argsort(-scores, kind="stable") if keep[row]]
    assert Ranking(scores).nearest(keep, 10).tolist() == every[:10]


def test_no_row_both_tunes_and_judges(dataset):
    searcher = Searcher(dataset)
    refs = list_embeddings(Folder(dataset), "toy")
    source = VectorSource(Folder(dataset), refs, None)
    tuning = source.sample_rows(1200, 0, TUNE)
    judging = draw_rows(searcher, 1200, 0)
    numbers = searcher.segments[0].rows.take(judging.rows_Q)["row"].to_numpy()
    assert len(tuning) > 1000
    assert len(numbers) > 1000
    assert not set(tuning.tolist()) & set(numbers.tolist())


def test_the_stage_keeps_what_it_measured(dataset):
    report = index(str(dataset), IndexConfig(kind="ivf", lists=60, evaluate=3))
    cells = report.extra["evaluation"]
    assert {cell["queries"] for cell in cells} == {"images"}
    told = measured(dataset)
    assert (told["rows"], told["k"], told["cells"]) == (ROWS, 10, cells)
    (segment,) = report.extra["index"]["segments"]
    assert segment["vector_bytes"] == ROWS * DIM * 2
    assert segment["learnt_from"].endswith("images")


def test_recall_measured_again_with_other_queries_is_the_same(dataset, monkeypatch):
    monkeypatch.setattr(execute, "worth_probing", lambda segment, k, matches: True)
    searcher, margins = Searcher(dataset), []
    first, again = (
        evaluate(searcher, {"texts": Queries.of_texts(queries(60, seed))}, seed=seed)
        for seed in (1, 2)
    )
    for one, other in zip(first, again, strict=True):
        assert (one.selectivity, one.correlation) == (other.selectivity, other.correlation)
        margins.append(np.hypot(one.recall - one.low, other.recall - other.low))
        # 2.9 deviations: all thirteen cells together are within them in 95 of 100 such tests.
        assert abs(one.recall - other.recall) <= 2.9 / 1.96 * margins[-1]
    assert max(margins) > 0


def test_a_rebuilt_index_is_not_told_the_recall_of_the_one_before(tmp_path):
    add_embeddings(tmp_path, "00000", VECTORS[:200])
    index(str(tmp_path), IndexConfig(evaluate=3))
    add_embeddings(tmp_path, "00001", VECTORS[200:220])
    index(str(tmp_path))
    assert measured(tmp_path)["rows"] == 200
    index(str(tmp_path), IndexConfig(compact=True))
    assert not measured(tmp_path)


def measured(dataset: Path) -> dict[str, Any]:
    (row,) = [row for row in status(str(dataset)) if row.stage == "index/toy"]
    return row.measured


def test_many_queries_are_answered_into_one_parquet(dataset, tmp_path):
    np.save(tmp_path / "queries.npy", queries(5))
    out = tmp_path / "hits.parquet"
    config = QueryConfig(k=7, where="original_width < 500")
    assert query_file(str(dataset), str(tmp_path / "queries.npy"), str(out), config) == 35
    table = pq.read_table(out)
    assert table.column_names[:5] == ["query", "text", "rank", "key", "match"]
    assert table["query"].to_pylist() == [n for n in range(5) for _ in range(7)]
    one = Searcher(dataset).search(vector=queries(5)[3], k=7, where=config.where)
    assert table["key"].to_pylist()[21:28] == one.key.tolist()
    assert pq.ParquetFile(out).num_row_groups == 1


def test_what_many_queries_wish_for_is_blended_into_each(dataset, tmp_path):
    np.save(tmp_path / "queries.npy", queries(3))
    wishes = {"like": "000000007", "plus": ("0.5:key=000000070",), "minus": ("key=000000200",)}
    out = str(tmp_path / "hits.parquet")
    query_file(str(dataset), str(tmp_path / "queries.npy"), out, QueryConfig(k=5, **wishes))
    found = pq.read_table(out)["key"].to_pylist()
    one = Searcher(dataset).search(vector=queries(3)[2], k=5, **wishes)
    assert found[10:] == one.key.tolist()
    assert not {"000000007", "000000070", "000000200"} & set(found)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"x", "txt, .parquet or .npy"),
        ("a.npy", b"x", "cannot be read"),
        ("a.txt", b"\n", "no query"),
        ("a.txt", b"\xff", "cannot be read"),
        ("a.parquet", b"x", "cannot be read"),
        ("a.parquet", {"x": [1]}, "has no column text or query or caption, but x"),
        ("a.parquet", {"text": [1, 2]}, "column text holds int64, not texts"),
        ("a.parquet", {"query": ["a fox", None]}, "row 1 .* says nothing"),
        ("a.parquet", {"caption": [" "]}, "row 0 .* says nothing"),
    ],
)
def test_unreadable_queries_are_one_clear_line(dataset, tmp_path, name, data, message):
    if isinstance(data, dict):
        pq.write_table(pa.table(data), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        query_file(str(dataset), str(tmp_path / name), str(tmp_path / "out.parquet"))
    with pytest.raises(ConfigError, match="parquet"):
        query_file(str(dataset), str(tmp_path / name), str(tmp_path / "out.csv"))
