"""Held-out queries and what each saw of the rows: what tuning learns from (see tuning.py).

Shapes: Q queries, L lists, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TOP = 64


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

    def count(self, lists: NDArray[np.int64]) -> None:
        """Count more matching rows, that come in list order."""
        if len(lists):
            counts = np.bincount(lists - lists[0])
            self.matches_L[lists[0] : lists[0] + len(counts)] += counts.astype(np.int32)

    def keep(self, scores: NDArray[np.float32], lists: NDArray[np.int64]) -> None:
        """Keep the best of what was kept and of more rows."""
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
