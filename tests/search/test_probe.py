"""Probing lists: always enough answers, honest about exactness, as good as promised."""

import numpy as np
import pytest

from laionkit.search import execute, planner, tuning
from laionkit.search.reach import Reach, expected_shares
from laionkit.search.searcher import Searcher
from laionkit.search.tuning import Asked, Learner, simulated_filters
from laionkit.stages.index import IndexConfig, index
from tests.search.datasets import add_embeddings, add_scores, clustered, cosines, unit

ROWS, DIM = 12_000, 48
VECTORS = clustered(ROWS, DIM, seed=3)
COLUMN = np.random.default_rng(4).random(ROWS).astype(np.float32)


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    place = tmp_path_factory.mktemp("probe")
    keys = add_embeddings(place, "00000", VECTORS)
    add_scores(place, "taste", "00000", keys, COLUMN)
    index(str(place), IndexConfig(kind="ivf", lists=100))
    return Searcher(place)


@pytest.fixture(scope="module")
def short_codes(tmp_path_factory):
    place = tmp_path_factory.mktemp("short")
    add_embeddings(place, "00000", VECTORS)
    index(str(place), IndexConfig(kind="ivf", lists=100, codes_mib=0))
    return Searcher(place)


@pytest.fixture(autouse=True)
def no_free_scan(monkeypatch):
    """At this size a scan costs next to nothing: probe all the same."""
    monkeypatch.setattr(planner, "probe_ms", lambda *_: 0.0)


def queries(count: int) -> np.ndarray:
    rng = np.random.default_rng(8)
    near = VECTORS[rng.integers(ROWS, size=count)].astype(np.float32)
    return unit(near + 0.1 * rng.standard_normal((count, DIM)))


def recall(searcher: Searcher, query: np.ndarray, keep: np.ndarray, **options: object) -> float:
    hits = searcher.search(vector=query, k=10, **options)
    rows = np.flatnonzero(keep)
    truth = rows[np.argsort(-cosines(VECTORS[rows], query))[:10]]
    assert len(hits) == min(10, len(rows))
    return len(set(hits.row) & set(truth.tolist())) / len(truth)


def test_a_probe_reaches_the_recall_it_is_tuned_for(searcher):
    found = [recall(searcher, query, np.ones(ROWS, bool)) for query in queries(60)]
    assert np.mean(found) >= 0.95


def test_a_probe_of_short_codes_reaches_it_too(short_codes):
    (segment,) = short_codes.segments
    assert segment.info.code_bits == 4
    found = [recall(short_codes, query, np.ones(ROWS, bool)) for query in queries(60)]
    assert np.mean(found) >= 0.95
    assert not short_codes.search(vector=queries(1)[0]).plan.exact


def test_an_answer_of_a_probe_is_not_called_exact(searcher):
    plan = searcher.search(vector=queries(1)[0]).plan
    (step,) = plan.steps
    assert (plan.exact, step.method) == (False, "probe")
    assert 0 < step.lists < step.of_lists == 100
    assert step.scored < ROWS


def test_exact_forces_a_scan(searcher):
    for query in queries(5):
        hits = searcher.search(vector=query, exact=True)
        assert hits.plan.exact
        assert recall(searcher, query, np.ones(ROWS, bool), exact=True) == 1


@pytest.mark.parametrize("share", [0.6, 0.2])
def test_a_filtered_probe_gives_min_k_matches_from_the_matches(searcher, share):
    keep = np.float32(share) > COLUMN
    found = [
        recall(searcher, query, keep, where=f"taste < {np.float32(share)}") for query in queries(40)
    ]
    assert np.mean(found) >= 0.95


def test_narrow_filters_and_many_hits_are_expected_to_need_more():
    reach = Reach()
    assert reach.sure_of(1) <= reach.sure_of(0.3) <= reach.sure_of(0.01) <= 1
    assert reach.scored_of(1, 10) <= reach.scored_of(1, 1000) <= 1
    assert 0 < reach.scored_of(1e-9, 10**6) <= 1


def test_lists_are_probed_in_the_order_of_the_share_that_may_be_better():
    near = np.array([0.1, 0.3, 0.3, 0.2], np.float32)
    spread = np.array([1.0, 0.5, 1.0, 1.0], np.float32)
    matches = np.array([1000, 1000, 1000, 0])
    order, before = expected_shares(0.35, near, spread, matches, Reach())
    assert order.tolist() == [2, 1]
    assert before[0] == 0
    assert 0.5 < before[1] < 1


def learner(asked: Asked) -> Learner:
    """Has seen VECTORS in the order of 50 lists."""
    sample = VECTORS.astype(np.float32)
    lists = np.argmax(sample @ unit(sample[::240]).T, axis=1)
    order = np.argsort(lists, kind="stable")
    sizes = np.bincount(lists, minlength=50)
    means = np.stack([sample[lists == number].mean(0) for number in range(50)])
    some = np.random.default_rng(5).permutation(ROWS)[:4000]
    found = Learner(asked, 40, sizes, means, sample[some], lists[some])
    assert sum(map(len, found.watch(np.array_split(VECTORS[order], 3)))) == ROWS
    return found


def learn(queries_QD: np.ndarray, recall: float = 0.95) -> Reach:
    return learner(Asked(queries_QD, np.full(len(queries_QD), -1), "texts")).reach(recall)


def test_a_learner_finds_the_nearest_of_all_rows_without_a_querys_own():
    lists = np.argmax(VECTORS.astype(np.float32) @ unit(VECTORS[::240]).T, axis=1)
    order = np.argsort(lists, kind="stable")
    vectors = VECTORS[order].astype(np.float32)
    asked = Asked(vectors[[7, 9000]], np.array([7, -1]), "images")
    seen = learner(asked).seen
    for q, held in enumerate(seen[1.0, 0.0]):
        scores = vectors @ asked.vectors_QD[q]
        best = [row for row in np.argsort(-scores) if row != asked.own_Q[q]][:64]
        np.testing.assert_allclose(held.scores, scores[best], rtol=1e-6)
        assert sorted(held.lists.tolist()) == sorted(lists[order][best].tolist())
    for (selectivity, _), helds in list(seen.items())[:6]:
        for held in helds:
            assert held.matches_L.sum() == pytest.approx(selectivity * ROWS, rel=0.25)


def test_what_is_learnt_is_the_same_on_any_count_of_cores(monkeypatch):
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(tuning, "CORES", cores)
        found.append(learn(queries(60)))
    assert found[0] == found[1]


def test_queries_among_the_vectors_need_less_than_those_far_from_them():
    near = learn(queries(60))
    far = unit(np.random.default_rng(0).standard_normal((60, DIM)))
    assert near.scored[0] < learn(far).scored[0]
    assert near.learnt_from == "60 texts"
    assert list(near.tail) == sorted(near.tail, reverse=True)


@pytest.mark.parametrize("correlation", [-0.7, 0.0, 0.7])
def test_a_simulated_filter_keeps_its_share_and_its_correlation(correlation):
    scores = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    ((_, keep),) = simulated_filters(scores, [(0.1, correlation)], np.random.default_rng(2))
    assert keep.sum() == 500
    shift = scores[keep].mean()
    assert shift == pytest.approx(1.755 * correlation, abs=0.15)


def test_a_latency_budget_cuts_a_probe_and_the_plan_says_so(searcher, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(planner, "PROBE_MS", 0.0)
    monkeypatch.setattr(execute, "worth_probing", lambda *_: True)
    query = unit(np.random.default_rng(0).standard_normal((1, DIM)))[0]
    whole = searcher.search(vector=query).plan.steps[0]
    cut = searcher.search(vector=query, latency_ms=0.001).plan.steps[0]
    assert (whole.cut, cut.cut) == (False, True)
    assert cut.scored < whole.scored
    assert len(searcher.search(vector=query, latency_ms=0.001)) == 10


def test_a_higher_recall_aimed_at_probes_more():
    rng = np.random.default_rng(0)
    far = unit(rng.standard_normal((60, DIM)))
    assert learn(far).sure[0] < learn(far, 0.985).sure[0]
