"""``--dry-run``: what would be kept, and what other thresholds would keep, from scores alone.

One pass over the dataset stores, per sample, the first step it failed, which conditions it failed
at all, and the numbers that thresholds are set on; every question is answered from those.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laionkit.core.records import StageRecords
from laionkit.core.schemas import SHARD_RECORDS
from laionkit.ops.predicates import Term, quote_name
from laionkit.stages.subset.selection import Selection

THRESHOLDS = 20
MAX_TERMS = 60
_COMPARISON = re.compile(r'(?:"[^"]+"|[a-z_][a-z0-9_]*) (>=|>|<=|<) -?[0-9.]+(?:e-?[0-9]+)?')


@dataclass(frozen=True)
class Curve:
    """For one condition: how many samples each threshold in its place would keep."""

    condition: str
    points: tuple[tuple[float, int], ...]


def curves(selection: Selection, terms: Sequence[Term]) -> list[Curve]:
    """The count at 20 thresholds for each ``column < number`` among `terms`, the others held.

    `selection` must have judged with `answers`.
    """
    asked = {i: term for i, term in enumerate(terms[:MAX_TERMS]) if _threshold(term)}
    if not asked:
        return []
    ends = ", ".join(f"min(v{i}), max(v{i})" for i in asked)
    found = selection.table.execute(f"SELECT {ends} FROM judged").fetchone()
    grids = {
        i: _grid(low, high)
        for i, low, high in zip(asked, found[::2], found[1::2], strict=True)
        if low is not None
    }
    counts = [
        f"count(*) FILTER (WHERE failed & ~{1 << (i + 1)} = 0 AND v{i} {_threshold(asked[i])} {t})"
        for i, grid in grids.items()
        for t in grid
    ]
    if not counts:
        return []
    kept = iter(selection.table.execute(f"SELECT {', '.join(counts)} FROM judged").fetchone())
    return [
        Curve(asked[i].sql, tuple((float(t), next(kept)) for t in grid))
        for i, grid in grids.items()
    ]


def estimated_bytes(selection: Selection, kept: int) -> int:
    """What tars of `kept` samples would weigh, by the mean of the dataset's own."""
    size = samples = 0
    for record in StageRecords(selection.table.folder, SHARD_RECORDS).all():
        size += record.files["tar"].size
        samples += record.counts.ok
    return round(size / samples * kept) if samples else 0


def answers_sql(terms: Sequence[Term], success: str) -> str:
    """SQL of the columns that `curves` reads: `failed`, a bit a condition, and the numbers.

    Bit 0 is the picture (`success`), bit i + 1 the i-th condition.
    """
    bits = [f"(NOT coalesce({success}, false))::BIGINT"]
    values = []
    for i, term in enumerate(terms[:MAX_TERMS]):
        bits.append(f"((({term.sql}) IS NOT TRUE)::BIGINT << {i + 1})")
        if _threshold(term):
            values.append(f"{quote_name(term.columns[0])}::DOUBLE AS v{i}")
    return ", ".join([f"{' | '.join(bits)} AS failed", *values])


def _threshold(term: Term) -> str:
    """The comparison of a condition ``column < number``; empty where it is none."""
    found = _COMPARISON.fullmatch(term.sql)
    return found.group(1) if found else ""


def _grid(low: float, high: float) -> list[float]:
    """20 round thresholds from `low` to `high`."""
    steps = np.linspace(low, high, THRESHOLDS)
    digits = max(0, 3 - int(np.floor(np.log10(high - low)))) if high > low else 6
    return [float(x) for x in np.round(steps, digits)]
