"""What a card, a report and a croissant say of a subset, gathered before the table is closed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laionkit.core.progress import Counts
from laionkit.ops.predicates import Term, quote_name
from laionkit.ops.presets import PUNSAFE
from laionkit.stages.subset.selection import FunnelStep, Selection
from laionkit.stages.subset.what_if import failed_sql

BINS = 24
TOP_DOMAINS = 12
BANDS = 4
PER_BAND = 8
# What LAION's own search page showed; anything above it, or never measured, is not drawn.
SHOWN_PUNSAFE = 0.1


@dataclass(frozen=True)
class Histogram:
    """Counts of a column over equal bins from `low` to `high`, of all samples and of the kept."""

    column: str
    low: float
    high: float
    everyone: tuple[int, ...]
    kept: tuple[int, ...]
    threshold: float | None = None


@dataclass(frozen=True)
class Facts:
    """Everything the documents of a subset are made of."""

    counts: Counts
    funnel: Sequence[FunnelStep]
    exclusive: Mapping[str, int]
    histograms: Sequence[Histogram]
    sizes: Sequence[tuple[str, int]]
    domains: Sequence[tuple[str, int]]
    licences: Sequence[tuple[str, int]]
    columns: Mapping[str, str]
    origins: Mapping[str, str]
    notes: Sequence[str]
    bands: Sequence[tuple[str, Sequence[str]]] = ()
    bands_note: str = ""
    root: str = ""


def gather_facts(
    selection: Selection, terms: Sequence[Term], by: str, notes: Sequence[str], root: str
) -> Facts:
    """Ask the dataset's engine for all of it."""
    table = selection.table
    scores = [n for n, o in table.origins.items() if o.startswith(("computed", "declared"))]
    shown = list(dict.fromkeys([*_numeric(table.columns, [n for t in terms for n in t.columns]),
                                *_numeric(table.columns, scores)]))[:8]  # fmt: skip
    bands, note = _bands(selection, by or (scores[0] if scores else ""))
    return Facts(
        counts=selection.counts(),
        funnel=selection.funnel(),
        exclusive=_exclusive(selection, terms),
        histograms=_histograms(selection, shown, terms),
        sizes=_sizes(selection),
        domains=_top(selection, "lower(regexp_extract(url, '^[a-zA-Z]+://([^/:?#]+)', 1))", "url"),
        licences=_top(selection, "license", "license"),
        columns=table.columns,
        origins=table.origins,
        notes=notes,
        bands=bands,
        bands_note=note,
        root=root,
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
    failed = failed_sql(terms, table.columns)
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
    """One of each column that has a value; all of them by two passes over the dataset."""
    if not columns:
        return []
    table = selection.table
    rows = table.select(dict.fromkeys(["key", *columns]))
    values = {name: f"CASE WHEN isfinite({v}) THEN {v} END"
              for name in columns for v in [f"{quote_name(name)}::DOUBLE"]}  # fmt: skip
    picks = ", ".join(f"[min({value}), max({value})]" for value in values.values())
    told = table.execute(f"SELECT {picks} FROM ({rows})").fetchone()
    ends = {name: span for name, span in zip(columns, told, strict=True) if None not in span}
    if not ends:
        return []
    counts = [
        f"histogram(least({BINS - 1}, floor(({values[name]} - {low}) / {_width(low, high)})))"
        for name, (low, high) in ends.items()
    ]
    picks = ", ".join(f"{count}, {count} FILTER (WHERE j.code = 0)" for count in counts)
    found = table.execute(
        f"SELECT {picks} FROM ({rows}) s JOIN judged j ON j.key = s.key"
    ).fetchone()
    return [
        Histogram(name, low, high, _bins(everyone), _bins(kept), _threshold(name, terms))
        for (name, (low, high)), everyone, kept in zip(
            ends.items(), found[::2], found[1::2], strict=True
        )
    ]


def _width(low: float, high: float) -> float:
    """Of one bin."""
    return (high - low) / BINS or 1.0


def _bins(found: Mapping[float, int] | None) -> tuple[int, ...]:
    """Counts of all bins, of which the engine names those that are not empty."""
    return tuple((found or {}).get(number, 0) for number in range(BINS))


def _threshold(column: str, terms: Sequence[Term]) -> float | None:
    for term in terms:
        _, _, number = term.sql.rpartition(" ")
        if term.columns == (column,) and number.replace(".", "").replace("-", "").isdigit():
            return float(number)
    return None


def _sizes(selection: Selection) -> list[tuple[str, int]]:
    """Kept samples by the shorter side that the picture had."""
    if not {"original_width", "original_height"} <= set(selection.table.columns):
        return []
    left = selection.left(["key", "original_width", "original_height"])
    found = selection.table.execute(
        "SELECT CASE WHEN s < 256 THEN 'below 256' WHEN s < 512 THEN '256–511' WHEN s < 768 THEN "
        "'512–767' WHEN s < 1024 THEN '768–1023' ELSE '1024 and more' END AS side, count(*), min(s)"
        f" FROM (SELECT least(original_width, original_height) AS s FROM ({left})) WHERE s IS NOT "
        "NULL GROUP BY 1 ORDER BY 3"
    ).fetchall()
    return [(side, count) for side, count, _ in found]


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


def _bands(selection: Selection, by: str) -> tuple[list[tuple[str, list[str]]], str]:
    """A few kept keys from each quarter of a score's range, safe ones only."""
    table = selection.table
    safety = next((name for name in PUNSAFE if name in table.columns), "")
    if not safety:
        return [], "No pictures are shown: no safety score (punsafe, nsfw_l14) was measured."
    if not by or by not in _numeric(table.columns, [by]):
        return [], "No pictures are shown: there is no score to show them by."
    name, safe = quote_name(by), quote_name(safety)
    found: list[Any] = table.execute(
        f"SELECT band, min(v), max(v), list(key ORDER BY chance)[1:{PER_BAND}] FROM ("
        f"SELECT key, {name} AS v, md5(key) AS chance, ntile({BANDS}) OVER (ORDER BY {name}, key) "
        f"AS band FROM ({selection.left(dict.fromkeys(['key', by, safety]))}) "
        f"WHERE {safe} < {SHOWN_PUNSAFE} AND {name} IS NOT NULL) GROUP BY 1 ORDER BY 1"
    ).fetchall()
    note = f"Shown are kept pictures with {safety} below {SHOWN_PUNSAFE} only."
    return [(f"{by} {low:.3g} to {high:.3g}", keys) for _, low, high, keys in found], note
