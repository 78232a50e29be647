"""How much of an index a probe must score: learnt at build from held-out queries.

The nearest lists are probed until they hold a *share* of the rows that match a filter. The share
that reaches the target recall is measured, for several selectivities, and under filters that are
independent of the query's score, correlated with it and anti-correlated: the worst one counts.

Truth is exact over a random sample of rows. Its best rows stand for the best of all rows: with a
sample of one row in r, the sample's nearest row is about the r-th nearest of all.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

SELECTIVITIES = (1.0, 0.5, 0.1, 0.01, 0.001)
CORRELATIONS = (0.0, 0.7, -0.7)
DEPTHS = (10, 1000)
TARGET = 0.96  # of the lists alone: the recall promised is 0.95, and 8-bit codes cost a little
SAMPLE_ROWS = 32_768
_CUT_ROWS = 100_000
QUERIES = 150

# What an index goes by that has no captions' vectors to learn from: chosen from text queries on
# generated vectors with about CLIP's modality gap (benchmarks/search.py makes such), with room.
CAUTIOUS = (0.2, 0.4, 0.55, 0.8, 0.9)


class Shares(BaseModel):
    """The share of matching rows to score: one a selectivity, for ten hits.

    `thousand` is the share for a thousand hits where nothing is filtered.
    """

    model_config = ConfigDict(frozen=True)

    learnt_from: str = "nothing"
    selectivities: tuple[float, ...] = SELECTIVITIES
    ten: tuple[float, ...] = CAUTIOUS
    thousand: float = 0.3

    def share(self, selectivity: float, k: int) -> float:
        """The share for a filter that keeps `selectivity` of the rows, and k hits.

        Between the points measured it is interpolated over the logarithms of both.
        """
        at = np.log(np.clip(selectivity, self.selectivities[-1], 1.0))
        known = np.log(np.array(self.selectivities[::-1]))
        ten = float(np.interp(at, known, self.ten[::-1]))
        deeper = max(1.0, self.thousand / self.ten[0]) - 1
        depth = float(np.clip(np.log10(max(k, 1) / DEPTHS[0]) / 2, 0, 2))
        return min(1.0, ten * (1 + depth * deeper))


def learn_shares(
    queries_QD: NDArray[np.float32],
    sample_SD: NDArray[np.float32],
    list_of_S: NDArray[np.int32],
    centroids_LD: NDArray[np.float32],
    rows: int,
    source: str,
    seed: int = 0,
) -> Shares:
    """Measure the shares on held-out queries and a random sample of `rows` rows.

    `source` says what the queries are: ``texts`` or ``images``. Image queries lie among the
    vectors, where text queries do not: what they teach is not trusted below CAUTIOUS.
    """
    scores_QS = queries_QD @ sample_SD.T
    rank_QL = _ranks(queries_QD @ centroids_LD.T)
    rng = np.random.default_rng(seed)
    near, far = (_top(depth, rows, len(sample_SD)) for depth in DEPTHS)
    ten = tuple(
        max(
            _share(scores_QS, rank_QL, list_of_S, near, selectivity, correlation, rng)
            for correlation in (CORRELATIONS if selectivity < 1 else (0.0,))
        )
        for selectivity in SELECTIVITIES
    )
    thousand = _share(scores_QS, rank_QL, list_of_S, far, 1.0, 0.0, rng)
    if source == "images":
        ten = tuple(max(pair) for pair in zip(ten, CAUTIOUS, strict=True))
    return Shares(learnt_from=f"{len(queries_QD)} {source}", ten=ten, thousand=thousand)


def _top(depth: int, rows: int, sample: int) -> int:
    """How many of the sample's best rows stand for the best `depth` of all rows."""
    return max(1, round(depth * sample / rows))


def _ranks(scores_QL: NDArray[np.float32]) -> NDArray[np.int64]:
    """In which place each list comes for each query, nearest first."""
    order = np.argsort(-scores_QL, axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None].repeat(len(order), 0), 1)
    return ranks


def _share(
    scores_QS: NDArray[np.float32],
    rank_QL: NDArray[np.int64],
    list_of_S: NDArray[np.int32],
    top: int,
    selectivity: float,
    correlation: float,
    rng: np.random.Generator,
) -> float:
    """The share of matching rows, in nearest lists first, that holds TARGET of the best."""
    needs = [
        _needs(scores, ranks[list_of_S], top, selectivity, correlation, rng)
        for scores, ranks in zip(scores_QS, rank_QL, strict=True)
    ]
    return _reach(needs)


def _needs(
    scores_S: NDArray[np.float32],
    rank_S: NDArray[np.int64],
    top: int,
    selectivity: float,
    correlation: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The share of matching rows to score until each of the best matching rows is among them."""
    if selectivity < 1:
        keep = simulated_filter(scores_S, selectivity, correlation, rng)
        scores_S, rank_S = scores_S[keep], rank_S[keep]
    top = min(top, len(scores_S))
    best = np.argpartition(-scores_S, top - 1)[:top]
    held = np.cumsum(np.bincount(rank_S))
    return np.asarray(held[rank_S[best]] / len(scores_S))


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


def _reach(needs: Sequence[NDArray[np.float64]]) -> float:
    """The least share at which the mean recall, less a standard error, is the target."""
    for share in np.geomspace(0.005, 1.0, 60):
        recalls = np.array([(need <= share).mean() for need in needs])
        error = recalls.std() / np.sqrt(len(recalls))
        if recalls.mean() - error >= TARGET:
            return round(float(share), 4)
    return 1.0
