"""The README of a subset: what it is, how it was chosen, how to load it."""

from collections.abc import Sequence

from laionkit.core.files import Folder, Written
from laionkit.core.progress import Counts
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.selection import FunnelStep

_FORMS = {
    "shards": "`00000.tar` … hold `KEY.jpg`, `KEY.txt` and `KEY.json`; `sizes.json` counts them.",
    "view": "`kept.parquet` says where each picture lies in the dataset's own shards; no copies.",
    "parquet": "`kept.parquet` is a list of links with captions and scores; no pictures.",
}


def write_card(
    folder: Folder,
    config: SubsetConfig,
    counts: Counts,
    funnel: Sequence[FunnelStep],
    notes: Sequence[str],
) -> Written:
    """Write README.md."""
    lines = [
        f"# {config.name}",
        "",
        f"{counts.ok:,} of {counts.seen:,} samples, written by `laionkit subset`.",
        "",
        f"{_FORMS[config.as_]} `dropped.parquet` names, for every sample left out, the first step "
        "it failed and the value seen.",
        "",
        "| step | came | dropped | left |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {_cell(step.name)} | {step.seen:,} | {step.dropped:,} | {step.seen - step.dropped:,} |"
        for step in funnel
    ]
    lines += ["", "| dropped for | samples |", "|---|---:|"]
    lines += [f"| {_cell(reason)} | {count:,} |" for reason, count in counts.reasons.items()]
    if notes:
        lines += ["", *(f"{note[0].upper()}{note[1:]}." for note in notes)]
    return folder.write_bytes("README.md", ("\n".join(lines) + "\n").encode())


def _cell(text: str) -> str:
    code = text.replace("|", "\\|").replace("`", "'")
    return f"`{code}`"
