"""``--dry-run``: what would be kept, and what other thresholds would keep, from scores alone.

One pass over the columns the conditions read: for each sample the first step it failed, which
conditions it failed at all, and the numbers that thresholds are set on. Nothing of it is stored
but the counts.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laionkit.core.records import StageRecords
from laionkit.core.runner import StageReport
from laionkit.core.shard_scan import NEEDS_JOIN
from laionkit.core.table import DatasetTable
from laionkit.ops.predicates import Term, quote_name
from laionkit.stages.subset.choosing import take_steps
from laionkit.stages.subset.comparing import Comparison, Verdicts, judge, read_comparison
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.plan import Plan
from laionkit.stages.subset.selection import Selection

THRESHOLDS = 20
MAX_TERMS = 60


@dataclass(frozen=True)
class Curve:
    """For one condition: how many samples each threshold in its place would keep."""

    condition: str
    points: tuple[tuple[float, int], ...]


def dry_run(
    table: DatasetTable, config: SubsetConfig, plan: Plan, records: StageRecords
) -> StageReport:
    """Count and write nothing. Steps that read pictures are left out."""
    started = time.monotonic()
    selection = Selection(table, config.keep_nulls)
    pictured = config.as_ != "parquet"
    found = count_thresholds(selection, plan.terms, needs_picture=pictured)
    if plan.needs_rows(config):
        selection = Selection(table, config.keep_nulls)
        take_steps(selection, config, plan, look=False)
    counts, funnel = selection.counts(), selection.funnel()
    size = estimated_bytes(selection, counts.ok) if pictured else 0
    return StageReport(
        stage=records.stage,
        dataset=records.dataset.url,
        counts=counts,
        seconds=round(time.monotonic() - started, 3),
        extra={
            "dry_run": True,
            "funnel": [[step.name, step.seen, step.dropped] for step in funnel],
            "thresholds": {curve.condition: [list(p) for p in curve.points] for curve in found},
            "bytes": size,
        },
    )


def count_thresholds(
    selection: Selection, terms: Sequence[Term], *, needs_picture: bool
) -> list[Curve]:
    """Count what stays, and at 20 thresholds for each ``column < number`` of `terms`.

    The other conditions are held as they are.
    """
    table = selection.table
    if needs_picture:
        selection.require_pictures()
    asked = {i: c for i, term in enumerate(terms[:MAX_TERMS])
             if (c := read_comparison(term, table.columns))}  # fmt: skip
    ends = table.ends(comparison.column for comparison in asked.values())
    tallies = [
        _Tally(i, comparison, _grid(*ends[comparison.column]))
        for i, comparison in asked.items()
        if comparison.column in ends
    ]
    selection.counted = _count_plainly(selection, terms, asked, tallies)
    if selection.counted is None:
        selection.counted = _count_by_sql(selection, terms, tallies)
    return [Curve(terms[tally.number].sql, tally.points()) for tally in tallies]


def _count_plainly(
    selection: Selection,
    terms: Sequence[Term],
    asked: Mapping[int, Comparison],
    tallies: Sequence["_Tally"],
) -> dict[int, int] | None:
    """Samples by code where every condition is a comparison and no join is needed, else None."""
    table = selection.table
    words = {table.columns.get(name, "VARCHAR") for name in ("status", "reason")}
    scan = table.shard_scan(selection.columns(terms))
    if scan is None or len(asked) < len(terms) or words != {"VARCHAR"}:
        return None
    named = [(terms[i].sql, comparison) for i, comparison in asked.items()]
    wanted = [tally.number for tally in tallies]
    with contextlib.suppress(*NEEDS_JOIN):
        return _take(judge(selection, named, scan.batches(), wanted), tallies, selection.keep_nulls)
    return None


def _count_by_sql(
    selection: Selection, terms: Sequence[Term], tallies: Sequence["_Tally"]
) -> dict[int, int]:
    """Samples by code, whatever the conditions are."""
    table = selection.table
    code, _ = selection.verdict_sql(terms)
    failed = failed_sql(terms, table.columns, keep_nulls=selection.keep_nulls)
    picks = [f"({code})::BIGINT", failed, *(quote_name(t.comparison.column) for t in tallies)]

    def run(source: str) -> dict[int, int]:
        batches = table.batches(f"SELECT {', '.join(picks)} FROM ({source})")
        arrays = ([c.to_numpy(zero_copy_only=False) for c in batch.columns] for batch in batches)
        verdicts = ((code_N, failed_N, values) for code_N, failed_N, *values in arrays)
        return _take(verdicts, tallies, selection.keep_nulls)

    return table.one_pass(selection.columns(terms), run)


def _take(
    verdicts: Iterator[Verdicts], tallies: Sequence["_Tally"], keep_nulls: bool
) -> dict[int, int]:
    """Count samples by code, and by threshold into `tallies`."""
    by_code: dict[int, int] = {}
    for tally in tallies:
        tally.reset()
    for code_N, failed_N, values in verdicts:
        for code, count in enumerate(np.bincount(code_N)):
            by_code[code] = by_code.get(code, 0) + int(count)
        # Only what fails at most one condition can be kept by another threshold.
        near = np.flatnonzero(failed_N & (failed_N - 1) == 0)
        for tally, value_N in zip(tallies, values, strict=True):
            tally.add(failed_N[near], value_N[near], keep_nulls)
    return by_code


class _Tally:
    """Counts, for one condition, the samples that each threshold of a grid would keep."""

    def __init__(self, number: int, comparison: Comparison, grid: NDArray[np.float64]) -> None:
        self.number, self.comparison, self._grid = number, comparison, grid
        self._numbers = grid.astype(comparison.number.dtype)
        # How many of the grid's thresholds lie below a value: the edge itself by the comparison.
        self._side: Any = "right" if comparison.sign in (">=", "<") else "left"
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._below, self._always = np.zeros(len(self._grid) + 1, np.int64), 0

    def add(self, failed_N: NDArray[np.int64], value_N: NDArray[Any], keep_nulls: bool) -> None:
        """Count the samples that fail no other condition."""
        mine = value_N[failed_N & ~np.int64(1 << (self.number + 1)) == 0]
        there = ~np.isnan(mine)
        if keep_nulls:
            self._always += int(np.count_nonzero(~there))
        below_N = np.searchsorted(self._numbers, mine[there], side=self._side)
        self._below += np.bincount(below_N, minlength=len(self._below))

    def points(self) -> tuple[tuple[float, int], ...]:
        """Each threshold and what it keeps: the values above it, or those that are not."""
        up_to = np.cumsum(self._below)
        kept = up_to[:-1] if "<" in self.comparison.sign else up_to[-1] - up_to[:-1]
        return tuple(zip(self._grid.tolist(), (kept + self._always).tolist(), strict=True))


def estimated_bytes(selection: Selection, kept: int) -> int:
    """What tars of `kept` samples would weigh, by the mean of the dataset's own."""
    table = selection.table
    return round(table.tar_bytes / table.tar_samples * kept) if table.tar_samples else 0


def failed_sql(
    terms: Sequence[Term], columns: Mapping[str, str], *, keep_nulls: bool = False
) -> str:
    """SQL of the conditions that a sample fails, a bit each.

    Bit 0 is the picture, bit i + 1 the i-th condition.
    """
    success = "status = 'success'" if "status" in columns else "true"
    fails = "IS FALSE" if keep_nulls else "IS NOT TRUE"
    bits = [f"(NOT coalesce({success}, false))::BIGINT"]
    bits += [
        f"((({term.sql}) {fails})::BIGINT << {i + 1})" for i, term in enumerate(terms[:MAX_TERMS])
    ]
    return " | ".join(bits)


def _grid(low: float, high: float) -> NDArray[np.float64]:
    """20 round thresholds from `low` to `high`."""
    steps = np.linspace(low, high, THRESHOLDS)
    digits = max(0, 3 - int(np.floor(np.log10(high - low)))) if high > low else 6
    return np.round(steps, digits)
