"""Copies of narrow filters' vectors: the same answers, proven, within a budget."""

import gc

import numpy as np
import pytest

from laionkit.backends.knn import ListCopy
from laionkit.search import execute, planner
from laionkit.search.bits import from_mask
from laionkit.search.copies import COPIED, Copies
from laionkit.search.keep import Keep
from laionkit.search.searcher import Searcher
from laionkit.stages.index import IndexConfig, index
from tests.search.datasets import add_embeddings, assert_nearest, clustered, unit

ROWS, DIM = 4000, 32
VECTORS = clustered(ROWS, DIM, seed=5)
BYTES = 2 * DIM


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    place = tmp_path_factory.mktemp("copies")
    add_embeddings(place, "00000", VECTORS)
    index(str(place), IndexConfig(kind="ivf", lists=40))
    return Searcher(place)


@pytest.fixture
def vectors(searcher):
    return searcher.segments[0].vectors


def file_rows(searcher: Searcher) -> np.ndarray:
    """The row of VECTORS that each row of the index is."""
    return np.array([int(key[5:]) for key in searcher.segments[0].rows.keys().to_pylist()])


def vectors_only() -> None:
    """No lists: a copy is of vectors."""


def narrow(first: int, count: int) -> Keep:
    mask = np.zeros(ROWS, bool)
    mask[first : first + count] = True
    return Keep(from_mask(mask))


def test_a_narrow_filter_that_comes_again_is_answered_exactly(searcher, monkeypatch):
    monkeypatch.setattr(execute, "worth_probing", lambda *_: True)
    rng = np.random.default_rng(1)
    keys = [f"00000{row:04d}" for row in range(ROWS)]
    methods = []
    for query in unit(rng.standard_normal((4, DIM))):
        hits = searcher.search(vector=query, k=20, where="original_width < 150")
        methods.append((hits.plan.steps[0].method, hits.plan.exact))
    # 15 % are too many for a copy: they are probed each time.
    assert methods == [("probe", False)] * 4
    methods.clear()
    for query in unit(rng.standard_normal((4, DIM))):
        hits = searcher.search(vector=query, k=20, where="original_width < 50")
        methods.append((hits.plan.steps[0].method, hits.plan.exact))
        assert len(hits) == 20
    assert methods == [("probe", False)] + [("scan", True)] * 3
    assert_nearest(hits, keys, VECTORS, query, 20, np.arange(ROWS) % 1000 < 50)


def test_a_copy_of_codes_is_probed_to_what_a_probe_without_one_finds(searcher, monkeypatch):
    monkeypatch.setattr(execute, "worth_probing", lambda *_: True)
    monkeypatch.setattr(execute.planner, "probes_copy", lambda *_: True)
    segment, rng = searcher.segments[0], np.random.default_rng(2)
    keep = Keep(from_mask(rng.random(ROWS) < 0.1))
    for query in unit(rng.standard_normal((6, DIM))):
        hits, plan = searcher.nearest(query, 20, [keep])
        bare, step = execute.search_segment(segment, query, 20, keep, False)
        assert hits.rows.tolist() == bare.rows.tolist()
        assert plan.steps == (step,)
        assert not plan.exact
    assert isinstance(keep.copy, ListCopy)
    hits, plan = searcher.nearest(query, 20, [keep], exact=True)
    assert plan.exact
    scores = VECTORS.astype(np.float32)[file_rows(searcher)[keep.rows]] @ query
    np.testing.assert_allclose(np.sort(hits.scores), np.sort(scores)[-20:], atol=1e-3)


def test_a_copy_is_of_codes_where_a_probe_of_it_takes_less_than_half_a_scan():
    assert planner.probes_copy(100_000, 45_000, 2000, 512)
    assert not planner.probes_copy(100_000, 80_000, 2000, 512)
    assert not planner.probes_copy(10_000, 4_500, 2000, 512)


def test_a_copy_comes_with_the_second_time_and_holds_the_rows_in_order(vectors):
    copies, keep = Copies(), narrow(100, 300)
    assert copies.of(keep, vectors, vectors_only) is None
    copy = copies.of(keep, vectors, vectors_only)
    assert np.array_equal(copy.view(np.float16), vectors.take(np.arange(100, 400)))
    assert copies.of(keep, vectors, vectors_only) is copy


def test_a_filter_that_keeps_much_is_not_copied(vectors):
    copies, keep = Copies(), narrow(0, int(COPIED * ROWS) + 1)
    assert [copies.of(keep, vectors, vectors_only) for _ in range(3)] == [None] * 3


def test_copies_stay_within_their_budget_and_the_oldest_go(vectors):
    copies = Copies(most_bytes=250 * BYTES)
    first, second, third = keeps = [narrow(100 * i, 100) for i in range(3)]
    for keep in keeps[:2]:
        copies.of(keep, vectors, vectors_only), copies.of(keep, vectors, vectors_only)
    copies.of(first, vectors, vectors_only)  # the second was now used longest ago
    copies.of(third, vectors, vectors_only), copies.of(third, vectors, vectors_only)
    assert [keep.copy is not None for keep in keeps] == [True, False, True]
    assert copies.of(second, vectors, vectors_only) is None
    assert copies.of(narrow(0, 126), vectors, vectors_only) is None  # more than half of them: never
    assert first.copy is not None


def test_a_filter_that_is_gone_makes_room_first(vectors):
    copies, kept = Copies(most_bytes=250 * BYTES), narrow(0, 100)
    for keep in (kept, narrow(100, 100)):
        copies.of(keep, vectors, vectors_only), copies.of(keep, vectors, vectors_only)
    del keep
    gc.collect()
    other = narrow(200, 100)
    copies.of(other, vectors, vectors_only), copies.of(other, vectors, vectors_only)
    assert kept.copy is not None
    assert other.copy is not None
