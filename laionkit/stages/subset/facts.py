"""What a card, a report and a croissant say of a subset, gathered before the table is closed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from laionkit.core.progress import Counts
from laionkit.ops.predicates import Term, quote_name
from laionkit.stages.subset.comparing import read_comparison
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.plan import Plan
from laionkit.stages.subset.selection import FunnelStep, Selection
from laionkit.stages.subset.shown import Band, pick_bands
from laionkit.stages.subset.what_if import failed_sql

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
    notes: Sequence[str]
    bands: Sequence[Band] = ()
    bands_note: str = ""
    root: str = ""


def gather_facts(selection: Selection, config: SubsetConfig, plan: Plan) -> Facts:
    """Ask the dataset's engine for all of it; the root is not known yet."""
    table, terms = selection.table, plan.terms
    scores = [n for n, o in table.origins.items() if o.startswith(("computed", "declared"))]
    shown = list(dict.fromkeys([*_numeric(table.columns, [n for t in terms for n in t.columns]),
                                *_numeric(table.columns, scores)]))[:8]  # fmt: skip
    sides, aspects = _sizes(selection)
    asked = [name for term in terms for name in term.columns if name in scores]
    by = next(iter(_numeric(table.columns, [config.by, *asked, *scores])), "")
    bands: Sequence[Band] = ()
    note = ""
    if config.as_ != "parquet":
        bands, note = pick_bands(selection, by, config.caption)
    return Facts(
        counts=selection.counts(),
        funnel=selection.funnel(),
        exclusive=_exclusive(selection, terms) if terms else {},
        histograms=_histograms(selection, shown, terms),
        sides=sides,
        aspects=aspects,
        domains=_top(selection, "lower(regexp_extract(url, '^[a-zA-Z]+://([^/:?#]+)', 1))", "url"),
        licences=_top(selection, "license", "license"),
        columns=table.columns,
        origins=table.origins,
        notes=plan.notes(table),
        bands=bands,
        bands_note=note,
    )


def _numeric(columns: Mapping[str, str], names: Sequence[str]) -> list[str]:
    numbers = ("FLOAT", "DOUBLE", "INTEGER", "BIGINT", "SMALLINT", "UTINYINT")
    return [name for name in names if columns.get(name) in numbers]


def _exclusive(selection: Selection, terms: Sequence[Term]) -> dict[str, int]:
    """For each condition the samples that only it drops: what it costs by itself."""
    table = selection.table
    names = {name for term in terms for name in term.columns} | {"key"}
    names |= {"status"} & set(table.columns)
    ordered = [name for name in table.columns if name in names]
    failed = failed_sql(terms, table.columns, keep_nulls=selection.keep_nulls)
    by_bits = table.one_pass(
        ordered,
        lambda source: dict(
            table.execute(f"SELECT {failed}, count(*) FROM ({source}) GROUP BY 1").fetchall()
        ),
    )
    return {term.sql: by_bits.get(1 << (i + 1), 0) for i, term in enumerate(terms)}


def _histograms(
    selection: Selection, columns: Sequence[str], terms: Sequence[Term]
) -> list[Histogram]:
    """One of each column that has a value; all of them in one pass over the dataset."""
    if not columns:
        return []
    table = selection.table
    rows = table.select(dict.fromkeys(["key", *columns]))
    values = {name: f"CASE WHEN isfinite({v}) THEN {v} END"
              for name in columns for v in [f"{quote_name(name)}::DOUBLE"]}  # fmt: skip
    ends = table.ends(columns)
    if not np.isfinite(list(ends.values())).all():
        picks = ", ".join(f"[min({values[name]}), max({values[name]})]" for name in ends)
        told = table.row(f"SELECT {picks} FROM ({rows})")
        ends = {name: span for name, span in zip(ends, told, strict=True) if None not in span}
    if not ends:
        return []
    counts = [
        # A null is in no bin, and would be the least of it and the last.
        f"histogram(CASE WHEN isfinite({quote_name(name)}::DOUBLE) THEN least({BINS - 1}, "
        f"floor(({quote_name(name)}::DOUBLE - {low}) / {_width(low, high)})) END)"
        for name, (low, high) in ends.items()
    ]
    picks = ", ".join(f"{count}, {count} FILTER (WHERE j.code = 0)" for count in counts)
    found = table.row(f"SELECT {picks} FROM ({rows}) s JOIN judged j ON j.key = s.key")
    return [
        Histogram(name, *span, _bins(all_), _bins(kept), _thresholds(name, terms, table.columns))
        for (name, span), all_, kept in zip(ends.items(), found[::2], found[1::2], strict=True)
    ]


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


def _sizes(selection: Selection) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Kept samples by the shorter side, and by the aspect, that the picture had."""
    if not {"original_width", "original_height"} <= set(selection.table.columns):
        return [], []
    left = selection.left(["key", "original_width", "original_height"])
    side, aspect = _bucket("least(w, h)", _SIDES), _bucket("w / h", _ASPECTS)
    found = selection.table.execute(
        f"SELECT {side}, {aspect}, count(*) FROM (SELECT original_width::DOUBLE AS w, "
        f"original_height::DOUBLE AS h FROM ({left})) WHERE w > 0 AND h > 0 GROUP BY 1, 2"
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


def _top(selection: Selection, value: str, column: str) -> list[tuple[str, int]]:
    """The most frequent values among what is kept."""
    if column not in selection.table.columns:
        return []
    found: list[tuple[str, int]] = selection.table.execute(
        f"SELECT coalesce({value}::VARCHAR, 'not stated') AS v, count(*) AS n "
        f"FROM ({selection.left(['key', column])}) GROUP BY 1 ORDER BY n DESC, v "
        f"LIMIT {TOP_DOMAINS}"
    ).fetchall()
    return found
