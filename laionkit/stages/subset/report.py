"""report.html: one self-contained file that shows what a subset kept and what it cost."""

import base64
import html
from collections.abc import Iterable, Sequence

from laionkit.core.files import Folder, Written
from laionkit.ops.images import PictureError, decode
from laionkit.ops.resize import Resize, encode, resize
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.facts import Facts, Histogram
from laionkit.stages.subset.pictures import PLACE_COLUMNS, Pictures
from laionkit.stages.subset.selection import Selection

REPORT = "report.html"
_THUMBNAIL = Resize("keep_ratio_largest", 112)
_WIDTH, _HEIGHT = 320, 90

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}
td,th{padding:.15em .8em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}code{background:#f3f3f3;padding:0 .2em}
.charts{display:flex;flex-wrap:wrap;gap:1.5em}.grid{display:flex;flex-wrap:wrap;gap:4px}
.bar{background:#4a7dbd;height:.8em;display:inline-block}
"""


def write_report(
    selection: Selection, folder: Folder, config: SubsetConfig, facts: Facts
) -> Written:
    """Write report.html. Nothing in it is loaded from elsewhere, and nothing unsafe is shown."""
    counts = facts.counts
    parts = [
        f"<h1>{_text(config.name)}</h1>",
        f"<p>{counts.ok:,} of {counts.seen:,} samples. Root <code>{facts.root}</code></p>",
        "<h2>Funnel</h2>",
        _funnel(facts),
        "<h2>Reasons</h2>",
        _bars(counts.reasons.items()),
        "<h2>Scores</h2><p>Grey: every sample; blue: kept; line: the threshold.</p>",
        f'<div class="charts">{"".join(_chart(h) for h in facts.histograms)}</div>',
    ]
    for title, rows in (
        ("Shorter side where it was found, px", facts.sizes),
        ("Top domains", facts.domains),
        ("Licences", facts.licences),
    ):
        if rows:
            parts += [f"<h2>{title}</h2>", _bars(rows)]
    if config.as_ != "parquet":
        parts += [f"<h2>Samples</h2><p>{_text(facts.bands_note)}</p>", *_grids(selection, facts)]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(config.name)}</title>'
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
    return folder.write_bytes(REPORT, page.encode())


def _funnel(facts: Facts) -> str:
    rows = ["<tr><th>step<th>came<th>dropped<th>left<th>dropped by it alone</tr>"]
    for step in facts.funnel:
        alone = f"{facts.exclusive[step.name]:,}" if step.name in facts.exclusive else ""
        rows.append(
            f"<tr><td><code>{_text(step.name)}</code><td>{step.seen:,}<td>{step.dropped:,}"
            f"<td>{step.seen - step.dropped:,}<td>{alone}</tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _bars(rows: Iterable[tuple[str, int]]) -> str:
    found = list(rows)
    most = max((count for _, count in found), default=1)
    lines = [
        f"<tr><td>{_text(name)}<td>{count:,}<td style='text-align:left'>"
        f"<span class='bar' style='width:{round(240 * count / most)}px'></span></tr>"
        for name, count in found
    ]
    return f"<table>{''.join(lines)}</table>"


def _chart(histogram: Histogram) -> str:
    """Counts per bin as bars, the kept ones over all, the threshold as a line."""
    most = max(histogram.everyone) or 1
    width = _WIDTH / len(histogram.everyone)
    bars = [
        f'<rect x="{i * width:.1f}" y="{_HEIGHT * (1 - n / most):.1f}" width="{width - 1:.1f}" '
        f'height="{_HEIGHT * n / most:.1f}" fill="{colour}"/>'
        for series, colour in ((histogram.everyone, "#ccc"), (histogram.kept, "#4a7dbd"))
        for i, n in enumerate(series)
    ]
    span = histogram.high - histogram.low
    if histogram.threshold is not None and span:
        x = _WIDTH * (histogram.threshold - histogram.low) / span
        bars.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}" stroke="#c33"/>')
    return (
        f'<figure style="margin:0"><svg width="{_WIDTH}" height="{_HEIGHT}">{"".join(bars)}</svg>'
        f"<figcaption>{_text(histogram.column)}: {histogram.low:.4g} to {histogram.high:.4g}"
        "</figcaption></figure>"
    )


def _grids(selection: Selection, facts: Facts) -> list[str]:
    """A row of pictures for each band of the score."""
    pictures = Pictures(selection.table.folder)
    try:
        return [
            f"<h3>{_text(title)}</h3><div class='grid'>"
            f"{''.join(_thumbnails(selection, pictures, keys))}</div>"
            for title, keys in facts.bands
        ]
    finally:
        pictures.close()


def _thumbnails(selection: Selection, pictures: Pictures, keys: Sequence[str]) -> list[str]:
    places = ", ".join(f"p.{name}" for name in PLACE_COLUMNS)
    found = selection.table.execute(
        f"SELECT j.key, j.shard, {places} FROM places p JOIN judged j ON j.key = p.key "
        "WHERE list_contains(?, p.key) ORDER BY j.key",
        [list(keys)],
    ).fetchall()
    shown = []
    for key, shard, _, offset, size in found:
        try:
            picture = decode(pictures.read(shard, offset, size))
        except PictureError:
            continue
        small = resize(picture.rgb, _THUMBNAIL)
        data = base64.b64encode(encode(small, "jpg", 80)).decode()
        shown.append(f'<img alt="{_text(key)}" src="data:image/jpeg;base64,{data}">')
    return shown


def _text(text: str) -> str:
    """Text of the data, which is untrusted, as HTML that is only text."""
    return html.escape(" ".join(str(text).split())[:200])
