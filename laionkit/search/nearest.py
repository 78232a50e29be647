"""Held-out queries and the rows nearest to them: what tuning learns from (see tuning.py).

Shapes: Q queries, N rows, L lists, D dimensions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import Float16
from laionkit.backends.knn_build import widen

_SCORED_ROWS = 8192  # rows that all queries score at a time: 16 MB
_TOP = 64


@dataclass
class Held:
    """What a query saw under one filter: matches of each list, the best rows and their lists."""

    matches_L: NDArray[np.int32]
    scores: NDArray[np.float32]
    lists: NDArray[np.int64]

    def add(self, scores: NDArray[np.float32], lists: NDArray[np.int64]) -> None:
        """See more matching rows."""
        self.matches_L += np.bincount(lists, minlength=len(self.matches_L))
        self.keep(scores, lists)

    def keep(self, scores: NDArray[np.float32], lists: NDArray[np.int64]) -> None:
        """Keep the best of rows that are counted already."""
        if len(self.scores) == _TOP:
            better = scores > self.scores[-1]
            if not better.any():
                return
            scores, lists = scores[better], lists[better]
        if len(scores) > _TOP:
            best = np.argpartition(-scores, _TOP)[:_TOP]
            scores, lists = scores[best], lists[best]
        scores = np.concatenate([self.scores, scores])
        order = np.argsort(-scores)[:_TOP]
        self.scores = scores[order]
        self.lists = np.concatenate([self.lists, lists])[order]


@dataclass(frozen=True)
class Asked:
    """Held-out queries, unit vectors, and the row that each is (-1: none), no hit of its own.

    `kind` says what they are: ``texts`` or ``images``.
    """

    vectors_QD: NDArray[np.float32]
    own_Q: NDArray[np.int64]
    kind: str

    def some(self, count: int) -> "Asked":
        """So many of them, or all, from first to last."""
        picked = np.unique(np.linspace(0, len(self.own_Q) - 1, count).astype(np.int64))
        return Asked(self.vectors_QD[picked], self.own_Q[picked], self.kind)


class Nearest:
    """The best of all rows for each query, of rows that come in list order."""

    def __init__(self, asked: Asked, sizes_L: NDArray[np.int64]) -> None:
        """Begin; a query's own row is told by its place in that order."""
        self._asked, self._stops = asked, np.cumsum(sizes_L)
        nothing, counts = (np.empty(0, np.float32), np.empty(0, np.int64)), sizes_L.astype(np.int32)
        self.held = [Held(counts, *nothing) for _ in asked.own_Q]

    def watch(self, blocks: Iterable[Float16]) -> Iterator[Float16]:
        """See blocks of rows while they pass."""
        at = 0
        for block in blocks:
            for start in range(0, len(block), _SCORED_ROWS):
                self._see(block[start : start + _SCORED_ROWS], at + start)
            at += len(block)
            yield block

    def _see(self, half_ND: Float16, start: int) -> None:
        scores = self._asked.vectors_QD @ widen(half_ND).T
        here = self._asked.own_Q - start
        own = np.flatnonzero((here >= 0) & (here < len(half_ND)))
        scores[own, here[own]] = -2.0
        rows = np.arange(start, start + len(half_ND))
        lists = np.searchsorted(self._stops, rows, side="right")
        for held, of_query, best in zip(self.held, scores, scores.max(axis=1), strict=True):
            if len(held.scores) < _TOP or best > held.scores[-1]:
                held.keep(of_query, lists)
