"""What a card, a report and a croissant say of a subset, gathered before the table is closed."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import StageRecords
from laionkit.core.schemas import METADATA
from laionkit.core.table import DatasetTable
from laionkit.ops.predicates import Term, quote_name
from laionkit.stages.subset.comparing import read_comparison
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.kept import KeptRows
from laionkit.stages.subset.plan import Plan
from laionkit.stages.subset.selection import FunnelStep, Selection
from laionkit.stages.subset.shown import Band, pick_bands
from laionkit.stages.subset.what_if import failed_sql

_PUBLISHED_SET = "hf://datasets/([^/@]+/[^/@]+)"
BINS = 24
TOP_DOMAINS = 12
_SIDES: Mapping[float, str] = {
    256: "below 256",
    512: "256 to 511",
    768: "512 to 767",
    1024: "768 to 1,023",
}
_WIDEST = "1,024 and more"
_ASPECTS: Mapping[float, str] = {
    1 / 2: "narrower than 1:2",
    4 / 5: "1:2 to 4:5",
    5 / 4: "4:5 to 5:4",
    2: "5:4 to 2:1",
}
_WIDEST_ASPECT = "2:1 and wider"


@dataclass(frozen=True)
class Histogram:
    """Counts of a column over equal bins from `low` to `high`, of all samples and of the kept."""

    column: str
    low: float
    high: float
    everyone: tuple[int, ...]
    kept: tuple[int, ...]
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything the documents of a subset are made of."""

    counts: Counts
    funnel: Sequence[FunnelStep]
    exclusive: Mapping[str, int]
    histograms: Sequence[Histogram]
    sides: Sequence[tuple[str, int]]
    aspects: Sequence[tuple[str, int]]
    domains: Sequence[tuple[str, int]]
    licences: Sequence[tuple[str, int]]
    columns: Mapping[str, str]
    origins: Mapping[str, str]
    sources: Sequence[str]
    notes: Sequence[str]
    bands: Sequence[Band]
    bands_note: str
    root: str


@dataclass(frozen=True)
class Survey:
    """What one pass over every sample tells, whether it stays or not.

    `spans` are the ends of each column that is shown, `bins` its counts between them, `exclusive`
    what each condition drops that no other does: what it costs by itself.
    """

    spans: Mapping[str, tuple[float, float]]
    bins: Mapping[str, tuple[int, ...]]
    exclusive: Mapping[str, int]


def survey(selection: Selection, terms: Sequence[Term]) -> Survey:
    """Take the survey of a dataset."""
    table = selection.table
    asked = [name for term in terms for name in term.columns]
    shown = _numeric(table.columns, dict.fromkeys([*asked, *_scores(table)]))[:8]
    spans = _spans(table, shown)
    names = {*asked, *spans, *({"status"} & set(table.columns))}
    failed = failed_sql(terms, table.columns, keep_nulls=selection.keep_nulls)
    counts = "".join(f", {_histogram_sql(name, *ends)}" for name, ends in spans.items())
    found: list[Any] = table.one_pass(
        [name for name in table.columns if name in names] or ["key"],
        lambda source: table.execute(
            f"SELECT {failed}, count(*){counts} FROM ({source}) GROUP BY 1"
        ).fetchall(),
    )
    by_bits = {bits: count for bits, count, *_ in found}
    columns = zip(*(bins for _, _, *bins in found), strict=True)
    bins = {
        name: tuple(map(sum, zip(*map(_bins, each), strict=True)))
        for name, each in zip(spans, columns, strict=True)
    }
    return Survey(spans, bins, {t.sql: by_bits.get(2 << i, 0) for i, t in enumerate(terms)})


def gather_facts(
    selection: Selection,
    config: SubsetConfig,
    plan: Plan,
    surveyed: Survey,
    kept: KeptRows,
    root: str,
) -> Facts:
    """Ask what was kept for what the survey does not tell."""
    table, terms = selection.table, plan.terms
    sides, aspects = _sizes(kept, table.columns)
    scores = _scores(table)
    asked = [name for term in terms for name in term.columns if name in scores]
    by = next(iter(_numeric(table.columns, [config.by, *asked, *scores])), "")
    bands: Sequence[Band] = ()
    note = ""
    if config.as_ != "parquet":
        bands, note = pick_bands(selection, kept, by, config.caption)
    host = "lower(regexp_extract(url, '^[a-zA-Z]+://([^/:?#]+)', 1))"
    return Facts(
        counts=selection.counts(),
        funnel=selection.funnel(),
        exclusive=surveyed.exclusive,
        histograms=_histograms(kept, surveyed, terms, table.columns),
        sides=sides,
        aspects=aspects,
        domains=_top(kept, host) if "url" in table.columns else [],
        licences=_top(kept, "license") if "license" in table.columns else [],
        columns=table.columns,
        origins=table.origins,
        sources=_sources(table.folder),
        notes=plan.notes(table),
        bands=bands,
        bands_note=note,
        root=root,
    )


def _sources(dataset: Folder) -> list[str]:
    """Pages of the published sets that the links are of; files and other addresses are private."""
    named = {name for record in StageRecords(dataset, METADATA).all() for name in record.inputs}
    sets = {found[1] for name in named if (found := re.match(_PUBLISHED_SET, name))}
    return [f"https://huggingface.co/datasets/{name}" for name in sorted(sets)]


def _scores(table: DatasetTable) -> list[str]:
    return [n for n, o in table.origins.items() if o.startswith(("computed", "declared"))]


def _numeric(columns: Mapping[str, str], names: Iterable[str]) -> list[str]:
    numbers = ("FLOAT", "DOUBLE", "INTEGER", "BIGINT", "SMALLINT", "UTINYINT")
    return [name for name in names if columns.get(name) in numbers]


def _spans(table: DatasetTable, columns: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Least and greatest finite value of each column that has one."""
    ends = table.ends(columns)
    if np.isfinite(list(ends.values())).all():
        return ends
    values = {name: f"CASE WHEN isfinite({v}) THEN {v} END"
              for name in ends for v in [f"{quote_name(name)}::DOUBLE"]}  # fmt: skip
    picks = ", ".join(f"[min({values[name]}), max({values[name]})]" for name in ends)
    told = table.row(f"SELECT {picks} FROM ({table.select(['key', *ends])})")
    return {name: span for name, span in zip(ends, told, strict=True) if None not in span}


def _histograms(
    kept: KeptRows, surveyed: Survey, terms: Sequence[Term], columns: Mapping[str, str]
) -> list[Histogram]:
    """One of each column of the survey, that of the kept beside that of all."""
    if not surveyed.spans:
        return []
    counts = [_histogram_sql(name, *span) for name, span in surveyed.spans.items()]
    found = kept.row(f"SELECT {', '.join(counts)} FROM kept")
    return [
        Histogram(name, *span, surveyed.bins[name], _bins(bins), _thresholds(name, terms, columns))
        for (name, span), bins in zip(surveyed.spans.items(), found, strict=True)
    ]


def _histogram_sql(column: str, low: float, high: float) -> str:
    """SQL of a column's counts by bin, nulls in none: one would be in the least and the last."""
    value = f"{quote_name(column)}::DOUBLE"
    bin_ = f"least({BINS - 1}, floor(({value} - {low}) / {_width(low, high)}))"
    return f"histogram(CASE WHEN isfinite({value}) THEN {bin_} END)"


def _width(low: float, high: float) -> float:
    """Of one bin."""
    return (high - low) / BINS or 1.0


def _bins(found: Mapping[float, int] | None) -> tuple[int, ...]:
    """Counts of all bins, of which the engine names those that are not empty."""
    return tuple((found or {}).get(number, 0) for number in range(BINS))


def _thresholds(
    column: str, terms: Sequence[Term], columns: Mapping[str, str]
) -> tuple[float, ...]:
    found = (read_comparison(term, columns) for term in terms if term.columns == (column,))
    return tuple(float(comparison.number) for comparison in found if comparison)


def _sizes(
    kept: KeptRows, columns: Mapping[str, str]
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Kept samples by the shorter side, and by the aspect, that the picture had."""
    if not {"original_width", "original_height"} <= set(columns):
        return [], []
    side, aspect = _bucket("least(w, h)", _SIDES), _bucket("w / h", _ASPECTS)
    found = kept.execute(
        f"SELECT {side}, {aspect}, count(*) FROM (SELECT original_width::DOUBLE AS w, "
        "original_height::DOUBLE AS h FROM kept) WHERE w > 0 AND h > 0 GROUP BY 1, 2"
    ).fetchall()
    by_side, by_aspect = Counter[int](), Counter[int]()
    for side_number, aspect_number, count in found:
        by_side[side_number] += count
        by_aspect[aspect_number] += count
    return (
        [(name, by_side[i]) for i, name in enumerate([*_SIDES.values(), _WIDEST]) if by_side[i]],
        [(name, by_aspect[i]) for i, name in enumerate([*_ASPECTS.values(), _WIDEST_ASPECT])
         if by_aspect[i]],
    )  # fmt: skip


def _bucket(value: str, edges: Mapping[float, str]) -> str:
    """SQL of how many edges a value reaches."""
    return " + ".join(f"({value} >= {edge})::INTEGER" for edge in edges)


def _top(kept: KeptRows, value: str) -> list[tuple[str, int]]:
    """The most frequent values among what is kept."""
    found: list[tuple[str, int]] = kept.execute(
        f"SELECT coalesce({value}::VARCHAR, 'not stated') AS v, count(*) AS n "
        f"FROM kept GROUP BY 1 ORDER BY n DESC, v LIMIT {TOP_DOMAINS}"
    ).fetchall()
    return found
