"""How far a probe must reach: which lists can hold a hit, judged by scores alone.

A row's score, less its list's mean score, in units of the list's spread, is spread much the same
in all lists. From that tail, and the score of the k-th hit found so far, follows how many better
rows each list not yet probed should hold.

Shapes: L lists, D dimensions.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

SELECTIVITIES = (1.0, 0.5, 0.1, 0.01, 0.001)
K = 10
RERANK = 4  # rows re-ranked per hit: 8-bit codes move a row by a few places

# What an index goes by that has no captions' vectors to learn from: image queries lie among the
# vectors and need less. On generated vectors with CLIP's modality gap it holds for text queries.
CAUTIOUS = (0.95, 0.95, 0.97, 0.99, 0.995)


class Reach(BaseModel):
    """What a probe goes by.

    `tail` is the share of a list's rows whose score exceeds the list's mean score by `tail_at`
    spreads. `sure` is the share of the hits that the probed lists should hold, one a selectivity;
    `scored` the share of matching rows that they then held, for ten hits, at the median.
    """

    model_config = ConfigDict(frozen=True)

    learnt_from: str = ""
    target: float = 0.95
    selectivities: tuple[float, ...] = SELECTIVITIES
    sure: tuple[float, ...] = CAUTIOUS
    scored: tuple[float, ...] = (0.1, 0.12, 0.2, 0.35, 0.6)
    tail_at: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2)
    tail: tuple[float, ...] = (0.5, 0.08, 2e-3, 1e-5, 0.0)

    def sure_of(self, selectivity: float) -> float:
        """`sure` for a filter that keeps so many of the rows."""
        return self._between(self.sure, selectivity)

    def scored_of(self, selectivity: float, k: int) -> float:
        """`scored` for such a filter and k hits: taken to grow with the fourth root of k."""
        return min(
            1.0, self._between(self.scored, selectivity) * max(1.0, math.sqrt(math.sqrt(k / K)))
        )

    def rows_scored(self, matches: int, rows: int, k: int) -> int:
        """How many of so many matching rows a probe should score for k hits."""
        return max(first_rows(matches, k), round(self.scored_of(matches / rows, k) * matches))

    def _between(self, values: Sequence[float], selectivity: float) -> float:
        at = np.log(np.clip(selectivity, self.selectivities[-1], 1.0))
        return float(np.interp(at, np.log(self.selectivities[::-1]), values[::-1]))

    @cached_property
    def upper(self) -> float:
        """By how many spreads one row in a thousand exceeds its list's mean."""
        return float(np.interp(-1e-3, -np.array(self.tail), self.tail_at))


def first_rows(matches: int, k: int) -> int:
    """How many matching rows a probe scores to learn how good a hit is.

    On a million vectors it is a tenth of what is scored in the end, whatever the filter.
    """
    return max(reranked(k), round(1.5 * math.pow(matches, 0.6)))


def reranked(k: int) -> int:
    """How many rows are re-ranked for k hits."""
    return RERANK * k + 24


def first_lists(
    near_L: NDArray[np.float32],
    spread_L: NDArray[np.float32],
    matches_L: NDArray[np.int64],
    wanted: int,
    reach: Reach,
) -> NDArray[np.int64]:
    """The lists whose best rows should be the nearest, until they hold `wanted` matching rows."""
    order: NDArray[np.int64] = np.argsort(-(near_L + np.float32(reach.upper) * spread_L))
    order = order[matches_L[order] > 0]
    held = np.cumsum(matches_L[order])
    return order[: int(np.searchsorted(held, wanted)) + 1]


def promising_lists(
    least: float,
    near_L: NDArray[np.float32],
    spread_L: NDArray[np.float32],
    matches_L: NDArray[np.int64],
    selectivity: float,
    reach: Reach,
) -> NDArray[np.int64]:
    """The lists that should hold all but a few of the rows that score more than `least`.

    A list's rows score about its mean (`near_L`) in units of its spread; `reach` knows the share
    that exceeds so many of them. Lists are taken in the order of that share.
    """
    order, share = expected_shares(least, near_L, spread_L, matches_L, reach)
    return order[share < reach.sure_of(selectivity)]


def expected_shares(
    least: float,
    near_L: NDArray[np.float32],
    spread_L: NDArray[np.float32],
    matches_L: NDArray[np.int64],
    reach: Reach,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Lists, most promising first, and what share of the hits the lists before each should hold."""
    distance = (np.float32(least) - near_L) / spread_L
    able = np.flatnonzero((distance < reach.tail_at[-1]) & (matches_L > 0))
    order = able[np.argsort(distance[able])]
    hits = matches_L[order] * np.interp(distance[order], reach.tail_at, reach.tail)
    before = np.cumsum(hits) - hits
    return order, before / max(float(hits.sum()), 1e-30)
