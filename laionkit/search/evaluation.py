"""How right an index is: recall against exact truth, by kind of query and by filter.

Queries are captions' vectors and rows of the index, neither of them among those that tuning may
draw from (`source.JUDGE`). A row is its own nearest: it is left out of its own answer and truth.
Filters are simulated: they keep a share of the rows, by a column that is independent of the
query's scores, correlated with them or anti-correlated.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from laionkit.search import bits
from laionkit.search.keep import Keep, prepare
from laionkit.search.reach import SELECTIVITIES
from laionkit.search.searcher import Searcher
from laionkit.search.source import HALVES, JUDGE
from laionkit.search.tuning import CORRELATIONS, simulated_filters

_BLOCK_ROWS = 32_768
_RANKED = 20_000  # rows in order of a query: ten under any filter that keeps a thousandth


class Cell(BaseModel):
    """Recall of one kind of query under one kind of filter.

    `low` and `high` bound the mean's 95 % confidence interval, `p5` is the 5th percentile over
    queries, `exact` the share of answers that were proven exact, `milliseconds` the median.
    """

    model_config = ConfigDict(frozen=True)

    queries: str
    selectivity: float
    correlation: float
    count: int
    recall: float
    low: float
    high: float
    p5: float
    exact: float
    milliseconds: float


class Evaluation(BaseModel):
    """What was measured of an index of `rows` living rows: recall@k by kind of query and filter.

    `segment` names the index's first segment: the card of another one is out of date.
    """

    model_config = ConfigDict(frozen=True)

    segment: str
    rows: int
    k: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Queries:
    """Unit vectors of one kind of query, and the rows they are of (-1: of none)."""

    vectors_QD: NDArray[np.float32]
    rows_Q: NDArray[np.int64]

    @classmethod
    def of_texts(cls, vectors_QD: NDArray[np.float32]) -> "Queries":
        """Queries that are no row of the index."""
        return cls(vectors_QD, np.full(len(vectors_QD), -1))


def draw_rows(searcher: Searcher, count: int, seed: int) -> Queries:
    """Living rows of an index as queries, drawn at random from those that may judge."""
    total = sum(segment.count for segment in searcher.segments)
    drawn = np.random.default_rng(seed).permutation(total)[: 4 * count + 64]
    kept = [np.empty(0, np.int64)]
    for segment in searcher.segments:
        local = drawn[(drawn >= segment.start) & (drawn < segment.start + segment.count)]
        local = local - segment.start
        if segment.dead is not None:
            local = local[(segment.dead[local // 8] >> (local % 8) & 1) == 0]
        numbers = segment.rows.take(local)["row"].to_numpy()
        kept.append(local[numbers % HALVES == JUDGE] + segment.start)
    rows = np.concatenate(kept)[:count]
    vectors = searcher.vectors_of(rows)
    return Queries(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), rows)


def evaluate(
    searcher: Searcher,
    queries: Mapping[str, Queries],
    *,
    k: int = 10,
    selectivities: Sequence[float] = SELECTIVITIES,
    correlations: Sequence[float] = CORRELATIONS,
    seed: int = 0,
    memory_mib: int = 2048,
) -> list[Cell]:
    """Measure recall@k for queries by kind (``texts``, ``images``).

    Cosines take a quarter of `memory_mib`, or what one query's take, four bytes a row; a filter
    takes some thirty bytes a row beside them.
    """
    cells = []
    for kind, asked in queries.items():
        filters = [(s, c) for s in selectivities for c in (correlations if s < 1 else (0.0,))]
        found: dict[tuple[float, float], list[_Found]] = {one: [] for one in filters}
        for query, row, scores in _scored(searcher, asked, memory_mib * 2**18):
            rng = np.random.default_rng((seed, len(found[filters[0]])))
            ranking = Ranking(scores)
            for one, keep in simulated_filters(scores, filters, rng):
                found[one].append(_one(searcher, query, row, ranking, keep, k))
        cells += [_cell(kind, *one, each) for one, each in found.items() if each]
    return cells


def _scored(
    searcher: Searcher, asked: Queries, most_bytes: int
) -> Iterator[tuple[NDArray[np.float32], int, NDArray[np.float32]]]:
    """Every query with its row and its cosine with every row of the index, [N]."""
    total = sum(segment.count for segment in searcher.segments)
    step = max(1, most_bytes // (4 * max(1, total)))
    for start in range(0, len(asked.rows_Q), step):
        vectors = asked.vectors_QD[start : start + step]
        scores = exact_scores(searcher, vectors)
        yield from zip(vectors, asked.rows_Q[start : start + step].tolist(), scores, strict=True)


def exact_scores(searcher: Searcher, vectors_QD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine of every query with every row of the index, [Q, N]."""
    total = sum(segment.count for segment in searcher.segments)
    scores = np.empty((len(vectors_QD), total), np.float32)
    for segment in searcher.segments:
        for first in range(0, segment.count, _BLOCK_ROWS):
            block = segment.vectors.take(np.arange(first, min(first + _BLOCK_ROWS, segment.count)))
            block /= np.sqrt(np.einsum("nd,nd->n", block, block))[:, None]
            start = segment.start + first
            scores[:, start : start + len(block)] = vectors_QD @ block.T
    return scores


class Ranking:
    """A query's exact scores, of which the best are in order: the nearest under any filter."""

    def __init__(self, scores_N: NDArray[np.float32]) -> None:
        """Put the best in order, enough of them for all filters but narrow or contrary ones."""
        self.scores_N = scores_N
        best = np.arange(len(scores_N))
        if len(best) > _RANKED:
            best = np.argpartition(-scores_N, _RANKED)[:_RANKED]
        self._best = best[np.argsort(-scores_N[best], kind="stable")]

    def nearest(self, keep_N: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
        """The min(k, matches) rows that score best of those kept, best first."""
        found = self._best[keep_N[self._best]][:k]
        if len(found) < k:
            rows = np.flatnonzero(keep_N)
            scores = self.scores_N[rows]
            if len(rows) > k:
                some = np.argpartition(-scores, k)[:k]
                rows, scores = rows[some], scores[some]
            found = rows[np.argsort(-scores, kind="stable")]
        return np.asarray(found, np.int64)


class _Found(NamedTuple):
    recall: float
    exact: bool
    milliseconds: float


def _one(
    searcher: Searcher,
    vector_D: NDArray[np.float32],
    own: int,
    ranking: Ranking,
    keep_N: NDArray[np.bool_],
    k: int,
) -> _Found:
    """Recall of one query, whether it was called exact, its milliseconds."""
    kept_N = keep_N.copy()
    for segment in searcher.segments:
        if segment.dead is not None:
            kept_N[bits.rows_of(segment.dead, segment.count) + segment.start] = False
    keeps = None
    if not keep_N.all():
        keeps = list(_split(searcher, kept_N))
        prepare(searcher.segments, keeps)  # as those of a filter that was asked with before
    started = time.perf_counter()
    found, plan = searcher.nearest(vector_D, k + (own >= 0), keeps)
    seconds = time.perf_counter() - started
    if own >= 0:
        kept_N[own] = False
    truth = ranking.nearest(kept_N, k)
    # Rows as near as float32 tells are as good as each other.
    least = float(ranking.scores_N[truth].min(initial=1.0)) - 2e-6
    hits = found.rows[found.rows != own][:k]
    right = int((kept_N[hits] & (ranking.scores_N[hits] >= least)).sum())
    return _Found(right / len(truth) if len(truth) else 1.0, plan.exact, 1e3 * seconds)


def _split(searcher: Searcher, keep_N: NDArray[np.bool_]) -> Iterator[Keep]:
    for segment in searcher.segments:
        yield Keep(bits.from_mask(keep_N[segment.start : segment.start + segment.count]))


def _cell(kind: str, selectivity: float, correlation: float, found: Sequence[_Found]) -> Cell:
    recalls = np.array([one.recall for one in found])
    margin = 1.96 * recalls.std() / np.sqrt(len(recalls))
    return Cell(
        queries=kind,
        selectivity=selectivity,
        correlation=correlation,
        count=len(found),
        recall=round(float(recalls.mean()), 4),
        low=round(float(recalls.mean() - margin), 4),
        high=round(min(1.0, float(recalls.mean() + margin)), 4),
        p5=round(float(np.quantile(recalls, 0.05)), 4),
        exact=round(float(np.mean([one.exact for one in found])), 4),
        milliseconds=round(float(np.median([one.milliseconds for one in found])), 3),
    )
