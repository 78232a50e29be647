"""Print hits, how they were found, and how an index is laid out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from laionkit.cli.show import console, table

if TYPE_CHECKING:
    import pyarrow as pa

    from laionkit.search.explain import Explanation, Option
    from laionkit.search.planner import Plan, Step

_NAMED = ("key", "match", "caption", "url", "shard", "row")
_MIB = 2**20
_CAPTION = 20
_NOTES = (
    "every matching row's float16 vector is scored",
    "the nearest lists' codes are scored, the best again as float16",
)


def hits(found: pa.Table, asked: str = "") -> None:
    """Print hits, best first: key, match, scores and caption; below it shard:row and url.

    Scores that do not fit beside a caption are named below the table; those that were `asked`
    for, in a filter or a wish, are the last to go.
    """
    if not found.num_rows:
        console.print("no hits")
        return
    scores = [name for name in found.column_names if name not in _NAMED]
    shown = _fitting(found, scores, asked)
    numbers = ["match", *shown]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    grid.add_column("key", no_wrap=True)
    for name in numbers:
        grid.add_column(name.replace("_", "_\n"), justify="right", overflow="fold")
    grid.add_column("caption", no_wrap=True, overflow="ellipsis", ratio=1, min_width=_CAPTION)
    for hit in found.to_pylist():
        place = f"{hit['shard']}:{hit['row']}" if isinstance(hit["shard"], str) else ""
        below = " ".join(filter(None, [place, _plain(hit["url"])]))
        about = Text(_plain(hit["caption"])).append("\n" + below if below else "", "dim")
        grid.add_row(Text(_plain(hit["key"])), *(_number(hit[name]) for name in numbers), about)
    console.print(grid)
    if left_out := [name for name in scores if name not in shown]:
        names = ", ".join(map(_plain, left_out))
        console.print(f"too wide to show beside: {names} (--json has all)", markup=False)


def _fitting(found: pa.Table, scores: list[str], asked: str) -> list[str]:
    """The scores that fit on the console beside key, match and caption, in the table's order."""
    words = set(re.findall(r"\w+", asked))
    room = console.width - _width(found, "key") - _width(found, "match") - _CAPTION
    kept = set()
    for name in sorted(scores, key=lambda name: name not in words):
        room -= _width(found, name)
        if room < 0:
            break
        kept.add(name)
    return [name for name in scores if name in kept]


def _width(found: pa.Table, name: str) -> int:
    """What a column takes, with the space and the divider beside it."""
    cells = (_plain(v) if isinstance(v, str) else _number(v) for v in found[name].to_pylist())
    return max(*map(len, cells), *map(len, re.findall("[^_]+_?", name))) + 3


def _plain(text: object) -> str:
    """A text on one line, without what could steer a terminal."""
    return "".join(filter(str.isprintable, " ".join(text.split()))) if isinstance(text, str) else ""


def _number(value: object) -> str:
    """A score in four digits; a label as it is; nothing where it was not measured."""
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else _plain(str(value)).replace("[", "\\[")


def plan(found: Plan) -> None:
    """Print how a query was answered, a line a segment."""
    kept = f"{found.matches:,} of {found.rows:,} rows"
    where = f" match {found.where}" if found.where else " are searched"
    sure = "exact: no row could have been missed" if found.exact else "not proven exact"
    console.print(f"plan   {kept}{where}; {sure}", markup=False)
    for step in found.steps:
        console.print(f"  {step.segment}  {_step(step)}", markup=False)
    laps = ", ".join(f"{name} {ms:,.1f}" for name, ms in found.milliseconds.items())
    console.print(f"  milliseconds: {laps}", markup=False)


def _step(step: Step) -> str:
    if step.method == "empty":
        return "empty: the filter keeps none of its rows"
    if step.method == "scan":
        return f"scan: {step.scored:,} of {step.matches:,} matching rows scored"
    share = 100 * step.scored / max(1, step.matches)
    return (
        f"probe: {step.lists:,} of {step.of_lists:,} lists, {step.scored:,} of {step.matches:,} "
        f"matching rows ({share:.3g} %) scored by their codes, the best again by their vectors"
    )


def explanation(found: Explanation) -> None:
    """Print what an index is or would be: the choice, bytes, recall, alternatives."""
    console.print(f"{found.model}: {found.rows:,} vectors of {found.dim}", markup=False)
    console.print(f"  {found.why}", markup=False)
    titles = ("", "search by", "vectors MiB", "codes MiB", "rows MiB", "ms", "recall@10")
    table(titles, [_option(option, found.row_bytes) for option in found.options])
    for option in found.options:
        console.print(f"  {option.name}: {_NOTES[option.lists > 0]}; recall {option.recall_is}")
    memory = found.options[0].build_mib
    console.print(
        f"  ms of an unfiltered text query on one core, estimated; built in {memory:,} MiB"
    )
    for segment in found.segments:
        dead = f", {segment['dead']:,} taken down" if segment["dead"] else ""
        learnt = f", tuned on {segment['learnt_from']}" if "learnt_from" in segment else ""
        kind = f"{segment['rows']:,} rows{dead}, {segment['kind']}{learnt}"
        console.print(f"  segment {segment['segment']}: {kind}", markup=False)
    if found.measured:
        recall(found.measured)
    elif found.segments:
        console.print("  recall was not measured: laionkit index --evaluate 200", markup=False)


def _option(option: Option, row_bytes: int) -> tuple[object, ...]:
    return (
        "→" if option.chosen else "",
        option.name,
        f"{option.vector_bytes / _MIB:,.1f}",
        f"{option.code_bytes / _MIB:,.1f}",
        f"{row_bytes / _MIB:,.1f}",
        option.milliseconds,
        f"{option.recall:.3g}",
    )


def recall(cells: object) -> None:
    """Print the recall that was measured, a line a kind of query and filter."""
    titles = ("queries", "filter keeps", "correlation", "recall", "95 % interval", "p5", "ms", "n")
    rows = [
        (
            cell["queries"],
            f"{100 * cell['selectivity']:g} %",
            cell["correlation"],
            cell["recall"],
            f"{cell['low']:.3f}–{cell['high']:.3f}",
            cell["p5"],
            cell["milliseconds"],
            cell["count"],
        )
        for cell in cells  # type: ignore[attr-defined]
    ]
    table(titles, rows, title="recall@10 measured")
