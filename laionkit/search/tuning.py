"""Learn at build, from held-out queries, how far a probe must reach (see reach.py).

Lists are probed until those left should hold no more than a small share of the hits. What is small
enough for the target recall is measured, for several selectivities, and under filters that are
independent of the query's score, correlated with it and anti-correlated: the worst one counts.

Truth without a filter is exact over all rows, which are scored as they are coded. Under filters
it is exact over a random sample of rows, whose best rows stand for the best of all: of a million
rows that asks for a recall of 0.98 where 0.96 was meant, and it is fewer queries.

Shapes: Q queries, S sampled rows, L lists, D dimensions.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import spreads
from laionkit.search.nearest import Asked, Held
from laionkit.search.reach import (
    CAUTIOUS,
    SELECTIVITIES,
    K,
    Reach,
    expected_shares,
    first_lists,
    first_rows,
)

CORRELATIONS = (0.0, 0.7, -0.7)
CELLS = tuple((s, c) for s in SELECTIVITIES for c in (CORRELATIONS if s < 1 else (0.0,)))
MARGIN = 0.01  # of the lists alone: 8-bit codes cost a little, and other queries are other queries
SAMPLE_ROWS = 200_000
FILTERED_QUERIES = 300
# Recall of 300 queries strays by 0.005, of 500 by 0.004: 300 once were lucky and 0.952 was reached.
QUERIES = 500
LEARNT_ROWS = 32_768  # rows that are learnt from at a time
_CUT_ROWS = 100_000
_CUT_COLUMNS = 4096  # rows a query, of which the narrowest filter keeps four


Block = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]


def learn_reach(
    asked: Asked,
    filtered: Asked,
    nearest: Sequence[Held],
    blocks: Iterable[Block],
    means_LD: NDArray[np.float32],
    part: float,
    recall: float = 0.95,
    seed: int = 0,
) -> Reach:
    """Learn from the `nearest` rows of queries, and from some queries that are `filtered`.

    `blocks` are rows, their vectors and their lists: a random sample that is a `part` of the rows,
    the first block of them drawn from everywhere.
    """
    near_QL = filtered.vectors_QD @ means_LD.T
    spread_L = spreads(means_LD)
    stream = iter(blocks)
    first = next(stream)
    scores = filtered.vectors_QD @ first[1].T
    tail_at, tail = _tail((scores - near_QL[:, first[2]]) / spread_L[first[2]])
    reach = Reach(learnt_from=f"{len(asked.own_Q)} {asked.kind}", target=recall,
                  tail_at=tail_at, tail=tail)  # fmt: skip
    seen = _see(filtered, _again(first, stream), scores, len(means_LD), seed)
    sure, scored = [], []
    for selectivity in SELECTIVITIES:
        if selectivity == 1:
            looks = [
                [_look(held, means_LD @ query, spread_L, 1.0, reach)
                 for query, held in zip(asked.vectors_QD, nearest, strict=True)]
            ]  # fmt: skip
        else:
            looks = [
                [_look(held, near_QL[q], spread_L, part, reach)
                 for q, held in enumerate(seen[selectivity, c]) if len(held.lists)]
                for c in CORRELATIONS
            ]  # fmt: skip
        at = max(_least_sure(look, recall + MARGIN) for look in looks)
        if asked.kind == "images":
            at = max(at, CAUTIOUS[SELECTIVITIES.index(selectivity)])
        sure.append(at)
        scored.append(round(max(_median_scored(look, at) for look in looks), 4))
    return reach.model_copy(update={"sure": tuple(sure), "scored": tuple(scored)})


def _again(first: Block, stream: Iterator[Block]) -> Iterator[Block]:
    yield first
    yield from stream


def _tail(distances: NDArray[np.floating]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The share of rows beyond each of some distances; beyond the last there are none."""
    shares = np.concatenate([[0.5], np.geomspace(0.3, 4 / distances.size, 40)])
    ordered = np.sort(distances, axis=None)  # in a fraction of the time that its quantiles take
    at = ordered[np.round((1 - shares) * (ordered.size - 1)).astype(np.int64)]
    end = at[-1] + (at[-1] - at[0]) / 4
    points = [*(round(float(x), 6) for x in at), round(float(end), 6)]
    return tuple(points), (*(float(f"{p:.4g}") for p in shares), 0.0)


def _see(
    asked: Asked,
    blocks: Iterator[Block],
    sample_QS: NDArray[np.float32],
    lists: int,
    seed: int,
) -> dict[tuple[float, float], list[Held]]:
    """What each query sees under each filter. `sample_QS`, scores of some rows, set the cuts."""
    rng = np.random.default_rng(seed)
    nothing = np.empty(0, np.float32), np.empty(0, np.int64)
    seen = {
        cell: [Held(np.zeros(lists, np.int32), *nothing) for _ in asked.own_Q]
        for cell in CELLS if cell[0] < 1
    }  # fmt: skip
    mean, deviation = sample_QS.mean(1), sample_QS.std(1)
    some = sample_QS[:, :_CUT_COLUMNS]
    cuts = _cuts((some - mean[:, None]) / deviation[:, None], rng)
    for rows, vectors, list_of in blocks:
        drawn = rng.standard_normal(2 * len(rows), np.float32)  # a query has its own part of it
        for q, scores in enumerate(asked.vectors_QD @ vectors.T):
            held = (scores, list_of)
            if asked.own_Q[q] >= 0:
                others = rows != asked.own_Q[q]
                held = (scores[others], list_of[others])
            unit = (held[0] - mean[q]) / deviation[q]
            first = rng.integers(len(drawn) - len(unit) + 1)
            noise = drawn[first : first + len(unit)]
            for correlation in CORRELATIONS:
                column, (kept, lists_of) = _column(unit, noise, correlation), held
                for selectivity in SELECTIVITIES[1:]:  # each keeps some of what the last one kept
                    inside = np.flatnonzero(column >= cuts[selectivity, correlation])
                    column, kept, lists_of = column[inside], kept[inside], lists_of[inside]
                    seen[selectivity, correlation][q].add(kept, lists_of)
    return seen


def _cuts(
    unit_QS: NDArray[np.float32], rng: np.random.Generator
) -> dict[tuple[float, float], np.floating]:
    """From where on a filter's column is kept, for each share and correlation."""
    noise = rng.standard_normal(unit_QS.shape, np.float32)
    found: dict[tuple[float, float], np.floating] = {}
    for correlation in CORRELATIONS:
        at = np.quantile(_column(unit_QS, noise, correlation), 1 - np.array(SELECTIVITIES[1:]))
        found.update(zip(((s, correlation) for s in SELECTIVITIES[1:]), at, strict=True))
    return found


def _column(unit: NDArray[np.float32], noise: NDArray[Any], correlation: float) -> NDArray[Any]:
    if not correlation:
        return noise
    column = noise * np.float32(np.sqrt(1 - correlation**2))
    column += np.float32(correlation) * unit
    return np.asarray(column)


class _Look(NamedTuple):
    """For one query and filter: the share sure of before each hit's list, and before each list."""

    needs: NDArray[np.float64]
    shares: NDArray[np.float64]
    held: NDArray[np.float64]
    first: float


def _look(
    held: Held, near_L: NDArray[np.float32], spread_L: NDArray[np.float32], part: float,
    reach: Reach,
) -> _Look:  # fmt: skip
    """Probe as a search does, with what was seen in place of scoring."""
    counts_L = held.matches_L.astype(np.int64)
    matches = int(counts_L.sum())
    k = min(max(1, round(K * part)), len(held.scores))
    wanted = round(part * first_rows(round(matches / part), K))
    first = first_lists(near_L, spread_L, counts_L, wanted, reach)
    probed = np.zeros(len(near_L), bool)
    probed[first] = True
    inside = probed[held.lists]
    met = held.scores[inside]
    least = float(met[k - 1] if len(met) >= k else held.scores[-1])
    order, shares = expected_shares(least, near_L, spread_L, counts_L, reach)
    place = np.full(len(near_L), len(order))
    place[order] = np.arange(len(order))
    needs = np.append(shares, 1.0)[place[held.lists[:k]]]
    needs[inside[:k]] = 0.0
    counts = np.where(probed[order], 0, counts_L[order])
    share = float(counts_L[first].sum()) / matches
    return _Look(needs, shares, share + np.cumsum(counts) / matches, share)


def _least_sure(looks: Sequence[_Look], target: float) -> float:
    """The least share at which the mean recall, less its standard error, is the target.

    Where no query met a match, of which a few rows have none under a narrow filter, it is all.
    """
    if not looks:
        return 0.9999
    counts = np.array([len(look.needs) for look in looks])
    needs = np.full((len(looks), int(counts.max())), np.inf)
    for row, look in zip(needs, looks, strict=True):
        row[: len(look.needs)] = look.needs
    for miss in np.geomspace(0.5, 0.001, 80):
        recalls = (needs < 1 - miss).sum(1) / counts
        if recalls.mean() - recalls.std() / np.sqrt(len(recalls)) >= target:
            return round(float(1 - miss), 4)
    return 0.9999


def _median_scored(looks: Sequence[_Look], sure: float) -> float:
    """The share of matching rows that is scored, at the median."""
    stops = (int(np.searchsorted(look.shares, sure)) for look in looks)
    scored = [
        look.held[stop - 1] if stop else look.first for look, stop in zip(looks, stops, strict=True)
    ]
    return float(np.median(scored or 1.0))


def simulated_filter(
    scores_N: NDArray[np.float32], selectivity: float, correlation: float,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:  # fmt: skip
    """A filter that keeps a share of rows by a column so correlated with the query's scores.

    Where rows are very many the cut that keeps the share is found on every few of them.
    """
    column = rng.standard_normal(len(scores_N), np.float32)
    if correlation:
        column *= np.float32(np.sqrt(1 - correlation**2))
        column += (scores_N - scores_N.mean()) * np.float32(correlation / scores_N.std())
    some = column[:: max(1, len(column) // _CUT_ROWS)]
    wanted = max(1, round(selectivity * len(some)))
    return np.asarray(column >= np.partition(some, len(some) - wanted)[len(some) - wanted])
