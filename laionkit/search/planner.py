"""Choose how one segment is searched, by what a filter leaves of it.

The filter is a bitmap over rows before the search begins, and rows are in list order, so what
each list holds of it is known exactly: lists are probed, nearest first, until enough *matching*
rows are in them. Nothing is assumed about how filter and query hang together.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import Bitmap, ListStore, dot_rows

Method = Literal["empty", "scan", "probe"]

# Costs, in rows scanned in turn as float16 vectors (measured at 512 dimensions). A matching row
# read out of turn costs two; a row passed over, one test of a bit; a row of 8-bit codes a little
# more than one of float16, which is converted by one instruction; a list its centroid's product
# and the start of a scan; a row re-ranked a copy.
_SCATTERED = 2.0
_PASSED = 0.04
_CODED = 1.25
_LIST = 8.0
_RERANKED = 30.0
FREE = 60_000.0  # a scan that costs no more than this (about 3 ms) is not worth a probe


def scan_cost(rows: int, matches: int) -> float:
    """The cost of scanning every matching row."""
    return rows * 1.0 if matches == rows else matches * _SCATTERED + rows * _PASSED


def probe_cost(rows: int, matches: int, wanted: int, lists: int, rerank: int) -> float:
    """The cost of probing lists until `wanted` matching rows are scored."""
    share = wanted / matches
    scattered = 1.0 if matches == rows else _SCATTERED
    passed = 0.0 if matches == rows else rows * share * _PASSED
    return wanted * scattered * _CODED + passed + lists * (1 + _LIST * share) + rerank * _RERANKED


@dataclass(frozen=True)
class Step:
    """What was done in one segment: how, of how many matching rows, how many were scored."""

    segment: str
    method: Method
    matches: int
    scored: int
    lists: int = 0
    of_lists: int = 0
    exact: bool = True


@dataclass(frozen=True)
class Plan:
    """How a query was answered. `exact` is said only where no row could have been missed."""

    rows: int
    matches: int
    exact: bool
    steps: tuple[Step, ...] = ()
    where: str | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "rows": self.rows,
            "matches": self.matches,
            "exact": self.exact,
            "where": self.where,
            "steps": [vars(step) for step in self.steps],
            "milliseconds": self.milliseconds,
        }


def matches_per_list(starts: NDArray[np.int64], keep: Bitmap | None) -> NDArray[np.int64]:
    """How many rows of each list a filter keeps."""
    if keep is None:
        return np.diff(starts)
    rows = int(starts[-1])
    bits = np.unpackbits(keep, count=rows, bitorder="little")
    summed = np.concatenate([[0], np.cumsum(bits, dtype=np.int64)])
    return np.diff(summed[starts])


def choose_lists(
    store: ListStore, query_D: NDArray[np.float32], keep: Bitmap | None, wanted: int
) -> tuple[NDArray[np.int64], int]:
    """The nearest lists that together hold `wanted` matching rows, and how many they hold."""
    matches = matches_per_list(store.starts, keep)
    nearest = np.argsort(-dot_rows(store.centroids_LD, query_D), kind="stable")
    nearest = nearest[matches[nearest] > 0]
    held = np.cumsum(matches[nearest])
    count = min(int(np.searchsorted(held, wanted)) + 1, len(nearest))
    return nearest[:count].astype(np.int64), int(held[count - 1]) if count else 0
