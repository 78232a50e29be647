"""report.html: one self-contained file that shows what a subset kept and what it cost."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from laionkit.core.files import Folder, Written
from laionkit.stages.subset.card import recipe
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.facts import Facts, Histogram
from laionkit.stages.subset.shown import Band

REPORT = "report.html"
_WIDTH, _HEIGHT = 300, 96

_STYLE = """
:root{--ink:#1f2328;--soft:#656d76;--line:#d8dee4;--back:#fff;--all:#d0d7de;--kept:#2f6fb5;
--cut:#cf222e}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#8d96a0;--line:#30363d;--back:#0d1117;
--all:#3d444d;--kept:#58a6ff;--cut:#ff7b72}}
body{font:15px/1.5 system-ui,sans-serif;max-width:1020px;margin:2.5em auto;padding:0 1.2em;
color:var(--ink);background:var(--back)}
h1{margin:0;font-size:2em}h2{margin:2em 0 .6em;font-size:1.2em}
h3{margin:1.2em 0 .4em;font-size:1em;font-weight:600}
p,figcaption,th{color:var(--soft)}p{margin:.3em 0}b{color:var(--ink)}
code{font:.88em ui-monospace,monospace;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}th{font-weight:500;font-size:.88em}
td,th{padding:.28em .6em;text-align:right;border-bottom:1px solid var(--line);
font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left;padding-left:0}
td.bar{width:38%;text-align:left;padding-right:0}
td.bar i{display:block;height:.7em;border-radius:2px;background:var(--all)}
td.bar b{display:block;height:.7em;border-radius:2px;background:var(--kept)}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));column-gap:3em}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:1.6em}
figure{margin:0}svg{width:100%;height:auto;border-bottom:1px solid var(--line)}
figcaption{font-size:.88em;display:flex;justify-content:space-between}
.everyone{fill:var(--all)}.kept{fill:var(--kept)}line{stroke:var(--cut);stroke-width:1.5}
.grid{display:flex;flex-wrap:wrap;gap:5px;align-items:end}.grid img{border-radius:4px}
"""


def write_report(folder: Folder, config: SubsetConfig, facts: Facts) -> Written:
    """Write report.html. Nothing in it is loaded from elsewhere, and nothing unsafe is shown."""
    counts = facts.counts
    share = f"{100 * counts.ok / max(1, counts.seen):.3g} %"
    parts = [
        f"<h1>{_text(config.name)}</h1>",
        f"<p><b>{counts.ok:,}</b> of {counts.seen:,} samples kept, {share}.</p>",
        f"<p>Root <code>{facts.root}</code></p>",
        "<h2>Recipe</h2>",
        _settings(recipe(config)),
        "<h2>Funnel</h2>",
        _funnel(facts),
    ]
    if facts.histograms:
        charts = "".join(map(_chart, facts.histograms))
        parts.append("<h2>Scores</h2><p>Grey: every sample. Blue: kept. Red: the threshold.</p>")
        parts.append(f'<div class="charts">{charts}</div>')
    reasons = sorted(counts.reasons.items(), key=lambda item: (-item[1], item[0]))
    tables = [
        ("Why samples were dropped", reasons),
        ("Domains of the kept", facts.domains),
        ("Shorter side where it was found, px", facts.sides),
        ("Width to height where it was found", facts.aspects),
        ("Licences of the kept", facts.licences),
    ]
    shown = [f"<div><h2>{title}</h2>{_bars(rows)}</div>" for title, rows in tables if rows]
    parts.append(f'<div class="two">{"".join(shown)}</div>')
    if config.as_ != "parquet":
        parts += [f"<h2>Samples</h2><p>{_text(facts.bands_note)}</p>", *map(_grid, facts.bands)]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(config.name)}</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
    return folder.write_bytes(REPORT, page.encode())


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [
        f"<p>{_text(name)}: <code>{_text(value)}</code></p>" for name, value in settings.items()
    ]
    return "".join(rows) or "<p>Every picture that was fetched.</p>"


def _funnel(facts: Facts) -> str:
    """Each step: what came, what it dropped, what it alone dropped, and what was left as a bar."""
    most = max((step.seen for step in facts.funnel), default=1)
    rows = ["<tr><th>step<th>came<th>dropped<th>by it alone<th>left<th></tr>"]
    for step in facts.funnel:
        alone = f"{facts.exclusive[step.name]:,}" if step.name in facts.exclusive else ""
        left = step.seen - step.dropped
        rows.append(
            f"<tr><td><code>{_text(step.name)}</code><td>{step.seen:,}<td>{step.dropped:,}"
            f"<td>{alone}<td>{left:,}{_bar(left, most, 'b')}</tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _bars(rows: Sequence[tuple[str, int]]) -> str:
    most = max(count for _, count in rows)
    lines = [f"<tr><td>{_text(n)}<td>{count:,}{_bar(count, most, 'i')}</tr>" for n, count in rows]
    return f"<table>{''.join(lines)}</table>"


def _bar(count: int, most: int, tag: str) -> str:
    width = 100 * count / max(1, most)
    return f"<td class=bar><{tag} style='width:{width:.1f}%'></{tag}>"


def _chart(histogram: Histogram) -> str:
    """Counts per bin as bars, the kept ones over all, the threshold as a line."""
    most = max(histogram.everyone) or 1
    width = _WIDTH / len(histogram.everyone)
    bars = [
        f'<rect class="{series}" x="{i * width:.1f}" y="{_HEIGHT * (1 - n / most):.1f}" '
        f'width="{width - 1:.1f}" height="{_HEIGHT * n / most:.1f}"/>'
        for series in ("everyone", "kept")
        for i, n in enumerate(getattr(histogram, series))
    ]
    span, said = histogram.high - histogram.low, f"<b>{_text(histogram.column)}</b>"
    if histogram.thresholds:
        said += f" at {', '.join(f'{threshold:g}' for threshold in histogram.thresholds)}"
    for threshold in histogram.thresholds if span else ():
        x = _WIDTH * (threshold - histogram.low) / span
        bars.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}"/>')
    low, high = histogram.low + 0.0, histogram.high + 0.0  # never "-0"
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(bars)}</svg><figcaption>'
        f"<span>{low:.4g}</span><span>{said}</span><span>{high:.4g}</span>"
        "</figcaption></figure>"
    )


def _grid(band: Band) -> str:
    """The pictures of one band of a score."""
    shown = [
        f'<img alt="{_text(key)}" title="{_text(f"{key}: {caption}")}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        for key, caption, jpeg in band.pictures
    ]
    return f"<h3>{_text(band.title)}</h3><div class='grid'>{''.join(shown)}</div>"


def _text(text: Any) -> str:
    """Text of the data, which is untrusted, as HTML that is only text."""
    return html.escape(" ".join(str(text).split())[:200])
