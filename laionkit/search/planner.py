"""Choose how one segment is searched, by what a filter leaves of it.

The filter is a bitmap over rows before the search begins, and rows are in list order, so what
each list holds of it is known exactly. Nothing is assumed about how filter and query hang
together: a first look at the nearest lists finds how good a hit is under this very filter, and
from that, and from how scores spread within lists, follows which lists can hold a better one.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa

Method = Literal["empty", "scan", "probe"]

# Nanoseconds of one core a row of 512 dimensions, measured on 2 GiB of vectors (EPYC, 2.4 GHz).
# Rows in turn stream; rows far apart cost a trip to memory each.
_IN_TURN = 48.0
_MATCHED = 80.0
_PASSED = 6.0  # a row that a bitmap does not keep
_GATHERED = 300.0
_CODED = {8: 36.0, 4: 70.0}  # a row of codes of so many bits a dimension, in turn
_LIST = 100.0  # a list's product, place and expectation
PROBE_MS = 0.25  # what a probe costs before it scores a row
_EXACT_WORTH = 2.0  # an exact answer may take so many times as long as one that is not
SPARSE = 0.03  # the share of rows kept below which they are gathered, not tested one by one


def scan_ms(rows: int, matches: int, dim: int) -> float:
    """What scoring every matching row takes."""
    if matches == rows:
        return rows * _IN_TURN * dim / 512e6
    if matches < SPARSE * rows:
        return matches * _GATHERED * dim / 512e6
    return matches * _MATCHED * dim / 512e6 + rows * _PASSED / 1e6


def probe_ms(
    rows: int, matches: int, scored: int, lists: int, dim: int, code_bits: int = 8
) -> float:
    """What probing takes until `scored` matching rows are scored."""
    base = PROBE_MS + lists * _LIST / 1e6
    if matches == rows:
        return base + scored * _CODED[code_bits] * dim / 512e6
    if matches < SPARSE * rows:
        return base + scored * _GATHERED * dim / 512e6
    return base + scored * _MATCHED * dim / 512e6 + scored * rows / matches * _PASSED / 1e6


def probes_copy(matches: int, scored: int, lists: int, dim: int, code_bits: int = 8) -> bool:
    """Whether a copy of matching rows should be of codes, to be probed, not of vectors to scan."""
    probe = probe_ms(matches, matches, scored, lists, dim, code_bits)
    return _EXACT_WORTH * probe < scan_ms(matches, matches, dim)


def affordable(
    rows: int, matches: int, lists: int, dim: int, latency_ms: float, code_bits: int = 8
) -> int:
    """How many matching rows can be scored by probing within a budget."""
    base = probe_ms(rows, matches, 0, lists, dim, code_bits)
    whole = probe_ms(rows, matches, matches, lists, dim, code_bits)
    if whole <= latency_ms:
        return matches
    return max(0, int(matches * (latency_ms - base) / (whole - base)))


@dataclass(frozen=True)
class Step:
    """What was done in one segment: how, of how many matching rows, how many were scored.

    `cut`: a latency budget ended the probe before it had reached the recall aimed at.
    """

    segment: str
    method: Method
    matches: int
    scored: int
    lists: int = 0
    of_lists: int = 0
    exact: bool = True
    cut: bool = False


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


class Found(NamedTuple):
    """Hits, best first: key, match, caption, url, every score, shard, row. `plan` says how."""

    table: pa.Table
    plan: Plan

    def as_json(self) -> dict[str, Any]:
        """Hits and plan as JSON values; what was not scored is NaN."""
        return {"hits": self.table.to_pylist(), "plan": self.plan.as_json()}
