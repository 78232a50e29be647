"""Print results: a table for people, one JSON document with ``--json``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from laionkit.core.progress import Counts

if TYPE_CHECKING:  # a query should not wait for what only metadata needs
    from laionkit.core.columns import ColumnInfo
    from laionkit.core.runner import StageReport
    from laionkit.core.status import StageStatus
    from laionkit.stages.metadata.inspection import Inspection

console = Console(highlight=False)


def as_json(value: Any) -> None:
    """Print one JSON document on stdout. NaN becomes null: JSON has none.

    Letters that stdout cannot spell are escaped, as JSON can, so that none is lost.
    """
    escape = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(_plain(value), indent=1, ensure_ascii=escape, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json", by_alias=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def said(value: Any, text: str, json_output: bool) -> None:
    """Print a value as JSON, or the words for it."""
    if json_output:
        as_json(value)
    else:
        line(text)


def line(text: str) -> None:
    """Print a line as it is, however narrow the screen: what may be copied is not cut up."""
    console.print(text, markup=False, soft_wrap=True)


def report(result: StageReport, json_output: bool = False) -> None:
    """Print what a stage did: counts, each reason, rate, seconds, where things lie."""
    if json_output:
        as_json(result)
        return
    print_counts(result)
    for note in result.notes:
        line(f"  {note}")
    for path in result.outputs:
        line(f"  → {path}")


def print_counts(result: StageReport) -> None:
    """Print the line of counts and, below it, a line for each reason."""
    counts, fresh = result.counts, result.shards - result.skipped
    shards = f"{result.shards:,} shards, " if result.shards > 1 else ""
    found = f"{result.skipped:,} found done, " if result.skipped else ""
    rate = f", {counts.seen / result.seconds:,.0f}/s" if fresh and result.seconds > 0 else ""
    console.print(
        f"[bold]{result.stage:<10}[/bold] in {counts.seen:,} = ok {counts.ok:,}"
        f"{_dropped(counts)}   "
        f"[dim]{shards}{found}{result.seconds:.1f} s{rate}[/dim]"
    )
    for reason, n in sorted(counts.reasons.items(), key=lambda kv: -kv[1]):
        share = 100 * n / max(1, counts.seen)
        console.print(f"  {n:>10,}  {share:5.1f} %  {reason}", markup=False)


def _dropped(counts: Counts) -> str:
    dropped = sum(counts.reasons.values())
    return f" + dropped {dropped:,}" if dropped else ""


def stages(found: Sequence[StageStatus]) -> None:
    """Print a row a stage, then the reasons of each."""
    titles = ("stage", "shards", "in", "ok", "dropped", "size", "time", "last (UTC)")
    rows = [
        (
            row.stage,
            row.shards,
            row.counts.seen,
            row.counts.ok,
            row.counts.seen - row.counts.ok,
            _size(row.bytes),
            _duration(row.seconds),
            row.last[5:16].replace("T", " "),
        )
        for row in found
    ]
    table(titles, rows, least=("size", "time", "last (UTC)", "shards"))
    dropped = [
        (row.stage, reason, n, f"{100 * n / row.counts.seen:.1f} %")
        for row in found
        for reason, n in sorted(row.counts.reasons.items(), key=lambda kv: -kv[1])
    ]
    if dropped:
        table(("stage", "reason", "dropped", "share"), dropped)
    for row in found:
        if row.worst_hosts:
            table(("host", "lost"), row.worst_hosts.items(), title=f"{row.stage}: worst hosts")
        if row.measured:
            _recall(row)
        if row.tried_again:
            tries = f"{row.healed:,} of {row.tried_again:,} tries at lost links healed them"
            line(f"{row.stage}: {tries}; they count as ok above")


def _size(count: int) -> str:
    """Bytes as people say them.

    >>> _size(36_503)
    '36.5 kB'
    """
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(4_000)
    '1 h 6 min'
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _recall(row: StageStatus) -> None:
    """Print an index's recall for each kind of query: without a filter, and under the worst."""
    rows = f"{row.measured['rows']:,} of {row.counts.ok:,} rows"
    cells = row.measured["cells"]
    for kind in dict.fromkeys(cell["queries"] for cell in cells):
        mine = [cell for cell in cells if cell["queries"] == kind]
        worst = min(mine, key=lambda cell: cell["recall"])
        told = [f"no filter {_interval(mine[0])}"]
        if worst["selectivity"] < 1:
            filtered = f"{100 * worst['selectivity']:g} %, correlation {worst['correlation']:g}"
            told.append(f"worst filter ({filtered}) {_interval(worst)}")
        what = f"{row.stage}: recall@{row.measured['k']} of {mine[0]['count']} {kind}, {rows}"
        console.print(f"{what}: {'; '.join(told)}", markup=False, soft_wrap=True)


def _interval(cell: Mapping[str, Any]) -> str:
    """A mean, its 95 % interval, its 5th percentile."""
    return f"{cell['recall']:.3f} ({cell['low']:.3f} to {cell['high']:.3f}, p5 {cell['p5']:g})"


def columns(found: Sequence[ColumnInfo]) -> None:
    """Print a row a column."""
    rows = [(c.name, c.type, c.origin, c.nulls, _cut(c.min), _cut(c.max)) for c in found]
    table(("column", "type", "origin", "nulls", "min", "max"), rows)


def inspection(found: Inspection) -> None:
    """Print what each source is seen as, a row a column with a histogram."""
    titles = ("column", "type", "nulls", "spread", "min", "max")
    for look in found.sources:
        rows = "rows unknown" if look.rows is None else f"{look.rows:,} rows"
        seen_as = f"  {look.set_name}, {rows}"
        console.print(Text.assemble((look.source, "bold"), seen_as), soft_wrap=True)
        whole = any(column.whole for column in look.columns)
        what = "spreads are" if whole else "nulls, ranges and spreads are"
        console.print(f"  {what} of the first {look.looked_at:,} rows", markup=False)
        for note in look.notes:
            console.print(f"  {note}", markup=False)
        table(
            titles,
            [
                (
                    c.name if c.name == c.source_name else f"{c.name} ← {c.source_name}",
                    _cut(c.type),
                    c.nulls,
                    _bars(c.histogram),
                    _cut(c.least),
                    _cut(c.greatest),
                )
                for c in look.columns
            ],
        )


def _cut(value: Any, most: int = 10) -> Any:
    """A long text's beginning, a long whole number's size: six columns stay within a screen."""
    if isinstance(value, int) and abs(value) >= 10**8:
        return f"{value:.3g}"
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return line[: most - 1] + "…" if len(line) > most else line


def _bars(histogram: Sequence[int]) -> str:
    """A histogram in one line of block characters."""
    most = max(histogram, default=0)
    return "".join("▁▂▃▄▅▆▇█"[min(7, 8 * n // (most + 1))] if n else " " for n in histogram)


def what_if(extra: Mapping[str, Any]) -> None:
    """Print a dry run's funnel, what other thresholds would keep, and the bytes."""
    table(("step", "in", "dropped"), extra["funnel"])
    for condition, points in extra["thresholds"].items():
        table(("threshold", "kept"), points, title=condition)
    console.print(f"about {extra['bytes'] / 1e6:,.1f} MB of pictures")


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    least: Sequence[str] = (),
) -> None:
    """Print rows under titles; numbers to the right, None as an empty cell.

    Where the screen is too narrow for all, the columns of `least` are left out, the last first.
    """
    shown = [[_cell(value) for value in row] for row in rows]
    widths = [
        max([len(name), *(len(row[place]) for row in shown)]) for place, name in enumerate(titles)
    ]
    out = _left_out(dict(zip(titles, widths, strict=True)), least)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, name in enumerate(titles):
        if name not in out:
            numeric = bool(shown) and all(_is_number(row[place]) for row in shown)
            _add_column(grid, name, max((len(row[place]) for row in shown), default=0), numeric)
    for row in shown:
        grid.add_row(*(cell for name, cell in zip(titles, row, strict=True) if name not in out))
    if title:
        line(title)
    console.print(grid, markup=False)
    if out:
        line(f"too narrow for {', '.join(out)} (--json has all)")


def _left_out(widths: Mapping[str, int], least: Sequence[str]) -> list[str]:
    room = console.width - 1 - sum(width + 2 for width in widths.values())
    out: list[str] = []
    for name in reversed(least):
        if room < 0:
            room += widths[name] + 2
            out.append(name)
    return out


def _add_column(grid: Table, name: str, widest: int, numeric: bool) -> None:
    if numeric:
        width = max(widest, min(len(name), 11))  # longer names fold
        grid.add_column(name, justify="right", min_width=width, overflow="fold")
    elif name == "url":  # cut rather than folded over many lines; --json has it whole
        grid.add_column(name, no_wrap=True, min_width=8, overflow="ellipsis", ratio=1)
    elif name in ("stage", "size", "time", "last (UTC)"):  # half of it tells nothing
        grid.add_column(name, no_wrap=True, min_width=widest)
    else:
        grid.add_column(name, min_width=min(widest, 20), overflow="fold")


def _cell(value: object) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("[", "\\[")


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("-", "").replace("e", "").isdigit()
