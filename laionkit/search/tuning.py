"""Learn at build, from held-out queries, how far a probe must reach (see reach.py).

Lists are probed until those left should hold no more than a small share of the hits. What is small
enough for the target recall is measured, for several selectivities, and under filters that are
independent of the query's score, correlated with it and anti-correlated: the worst one counts.

Truth is exact: queries score all rows as these are coded, which costs a tenth of assigning them
to lists. A random fifth of a million rows in their place asked for a recall of 0.98 where 0.96
was meant, as two of the ten nearest tell little.

Shapes: Q queries, F of them under filters, S sampled rows, L lists, D dimensions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import CORES, Float16, at_once, spreads, widen
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
FILTERED_QUERIES = 300
# Recall of 300 queries strays by 0.005, of 500 by 0.004: 300 once were lucky and 0.952 was reached.
QUERIES = 500
LEARNT_ROWS = 32_768  # rows that all queries score at a time: 64 MB
_TOP = 64  # rows that a query remembers: what its first look finds is among them
_NO_HIT = -2.0  # below every cosine
_CUT_ROWS = 100_000
_CUT_COLUMNS = 4096  # rows a query, of which the narrowest filter keeps four


@dataclass(frozen=True)
class Asked:
    """Held-out queries, unit vectors, and the row that each is (-1: none), no hit of its own.

    Rows are told by their place in list order. `kind` says what queries are: ``texts`` or
    ``images``.
    """

    vectors_QD: NDArray[np.float32]
    own_Q: NDArray[np.int64]
    kind: str


@dataclass
class Held:
    """What a query saw under one filter: matches of each list, the best rows and their lists."""

    matches_L: NDArray[np.int32]
    scores: NDArray[np.float32]
    lists: NDArray[np.int64]

    @classmethod
    def nothing(cls, matches_L: NDArray[np.int32]) -> "Held":
        """No row yet."""
        return cls(matches_L, np.empty(0, np.float32), np.empty(0, np.int64))

    def keep(
        self, scores: NDArray[np.float32], rows: NDArray[np.int64], lists_N: NDArray[np.int64]
    ) -> None:
        """Keep the best of what was kept and of more rows, of N whose lists are told."""
        if len(self.scores) == _TOP:
            better = np.flatnonzero(scores > self.scores[-1])
            if not len(better):
                return
            scores, rows = scores[better], rows[better]
        if len(scores) > _TOP:
            best = np.argpartition(-scores, _TOP)[:_TOP]
            scores, rows = scores[best], rows[best]
        scores = np.concatenate([self.scores, scores])
        order = np.argsort(-scores)[:_TOP]
        self.scores = scores[order]
        self.lists = np.concatenate([self.lists, lists_N[rows]])[order]


class Learner:
    """Sees every row once, in list order, then says how far a probe must reach."""

    def __init__(
        self,
        asked: Asked,
        filtered: int,
        sizes_L: NDArray[np.int64],
        means_LD: NDArray[np.float32],
        sample_SD: NDArray[np.float32],
        lists_S: NDArray[np.int64],
        seed: int = 0,
    ) -> None:
        """Learn from queries, of which so many are `filtered`, of lists with these means.

        The sample, of rows drawn from everywhere, with the list of each, tells how scores are
        spread: within lists, and overall, so that filters keep what they should.
        """
        self._asked, self._means_LD, self._stops = asked, means_LD, np.cumsum(sizes_L)
        self._rng = np.random.default_rng(seed)
        last = len(asked.own_Q) - 1
        self._filtered = np.unique(np.linspace(0, last, filtered).astype(np.int64))
        some_FD = asked.vectors_QD[self._filtered]
        self._spread_L, scores_FS = spreads(means_LD), some_FD @ sample_SD.T
        near_FS = (some_FD @ means_LD.T)[:, lists_S]
        self._tail_at, self._tail = _tail((scores_FS - near_FS) / self._spread_L[lists_S])
        # Where all vectors are one no score strays from the mean.
        self._mean_F, self._deviation_F = scores_FS.mean(1), np.maximum(scores_FS.std(1), 1e-12)
        unit_FS = scores_FS[:, :_CUT_COLUMNS] - self._mean_F[:, None]
        self._cuts = _cuts(unit_FS / self._deviation_F[:, None], self._rng)
        sizes = sizes_L.astype(np.int32)
        self.seen = {
            cell: [Held.nothing(np.zeros_like(sizes)) for _ in self._filtered]
            for cell in CELLS[1:]
        }  # fmt: skip
        self.seen[CELLS[0]] = [Held.nothing(sizes) for _ in asked.own_Q]

    def watch(self, blocks: Iterable[Float16]) -> Iterator[Float16]:
        """See blocks of rows while they pass."""
        at = 0
        for block in blocks:
            for start in range(0, len(block), LEARNT_ROWS):
                self._see(block[start : start + LEARNT_ROWS], at + start)
            at += len(block)
            yield block

    def _see(self, half_ND: Float16, start: int) -> None:
        count = len(half_ND)
        scores_QN = self._asked.vectors_QD @ widen(half_ND).T
        here = self._asked.own_Q - start
        own = np.flatnonzero((here >= 0) & (here < count))
        scores_QN[own, here[own]] = _NO_HIT
        rows = np.arange(count)
        lists_N = np.searchsorted(self._stops, rows + start, side="right")
        drawn = self._rng.standard_normal(2 * count, np.float32)
        firsts_F = self._rng.integers(count + 1, size=len(self._filtered))

        def show(part: slice) -> None:
            for held, scores in zip(self.seen[CELLS[0]][part], scores_QN[part], strict=True):
                held.keep(scores, rows, lists_N)
            for f, q in list(enumerate(self._filtered))[part]:
                noise = drawn[firsts_F[f] :][:count]  # each has its own part of what was drawn
                self._filter(f, scores_QN[q], lists_N, noise)

        at_once(show, [slice(core, None, CORES) for core in range(CORES)])

    def _filter(
        self, f: int, scores_N: NDArray[np.float32], lists_N: NDArray[np.int64],
        noise_N: NDArray[np.float32],
    ) -> None:  # fmt: skip
        """Show rows, that come in list order, to a query under every filter."""
        unit_N = (scores_N - self._mean_F[f]) / self._deviation_F[f]
        first, last = int(lists_N[0]), int(lists_N[-1])
        ends = np.searchsorted(lists_N, np.arange(first, last + 2))
        for correlation in CORRELATIONS:
            column, rows = _column(unit_N, noise_N, correlation), np.arange(len(scores_N))
            for selectivity in SELECTIVITIES[1:]:  # each keeps some of what the last one kept
                inside = np.flatnonzero(column >= self._cuts[selectivity, correlation])
                column, rows = column[inside], rows[inside]
                held = self.seen[selectivity, correlation][f]
                held.matches_L[first : last + 1] += np.diff(np.searchsorted(rows, ends))
                held.keep(scores_N[rows], rows, lists_N)

    def reach(self, recall: float = 0.95) -> Reach:
        """What was learnt for a recall that is aimed at."""
        asked = self._asked
        reach = Reach(learnt_from=f"{len(asked.own_Q)} {asked.kind}", target=recall,
                      tail_at=self._tail_at, tail=self._tail)  # fmt: skip
        sure, scored = [], []
        for number, selectivity in enumerate(SELECTIVITIES):
            looks = [list(self._looks(cell, reach)) for cell in CELLS if cell[0] == selectivity]
            at = max(_least_sure(look, recall + MARGIN) for look in looks)
            if asked.kind == "images":
                at = max(at, CAUTIOUS[number])
            sure.append(at)
            scored.append(round(max(_median_scored(look, at) for look in looks), 4))
        return reach.model_copy(update={"sure": tuple(sure), "scored": tuple(scored)})

    def _looks(self, cell: tuple[float, float], reach: Reach) -> Iterator["_Look"]:
        """What each query that met a match would have probed."""
        asked = range(len(self._asked.own_Q)) if cell == CELLS[0] else self._filtered
        for q, held in zip(asked, self.seen[cell], strict=True):
            if len(held.lists):
                near_L = self._means_LD @ self._asked.vectors_QD[q]
                yield _look(held, near_L, self._spread_L, reach)


def _tail(distances: NDArray[np.floating]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The share of rows beyond each of some distances; beyond the last there are none."""
    shares = np.concatenate([[0.5], np.geomspace(0.3, 4 / distances.size, 40)])
    ordered = np.sort(distances, axis=None)  # in a fraction of the time that its quantiles take
    at = ordered[np.round((1 - shares) * (ordered.size - 1)).astype(np.int64)]
    end = at[-1] + (at[-1] - at[0]) / 4
    points = [*(round(float(x), 6) for x in at), round(float(end), 6)]
    return tuple(points), (*(float(f"{p:.4g}") for p in shares), 0.0)


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
    held: Held, near_L: NDArray[np.float32], spread_L: NDArray[np.float32], reach: Reach
) -> _Look:
    """Probe as a search does, with what was seen in place of scoring."""
    counts_L = held.matches_L.astype(np.int64)
    matches = int(counts_L.sum())
    k = min(K, len(held.scores))
    first = first_lists(near_L, spread_L, counts_L, first_rows(matches, K), reach)
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


def simulated_filters(
    scores_N: NDArray[np.float32], cells: Iterable[tuple[float, float]], rng: np.random.Generator
) -> Iterator[tuple[tuple[float, float], NDArray[np.bool_]]]:
    """Filters that keep a share of rows by columns so correlated with one query's scores.

    They share what is drawn, which is most of the work. Where rows are very many the cut that
    keeps the share is found on every few of them.
    """
    noise = rng.standard_normal(len(scores_N), np.float32)
    unit = (scores_N - scores_N.mean()) / max(float(scores_N.std()), 1e-12)
    columns: dict[float, NDArray[np.float32]] = {}
    for selectivity, correlation in cells:
        if selectivity == 1:
            yield (selectivity, correlation), np.ones(len(noise), bool)
            continue
        if correlation not in columns:
            columns[correlation] = _column(unit, noise, correlation)
        column = columns[correlation]
        some = column[:: max(1, len(column) // _CUT_ROWS)]
        wanted = max(1, round(selectivity * len(some)))
        cut = np.partition(some, len(some) - wanted)[len(some) - wanted]
        yield (selectivity, correlation), column >= cut
