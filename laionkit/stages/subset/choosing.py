"""Every step in the order that SubsetConfig states, from all samples to those that stay."""

from collections.abc import Sequence

from laionkit.core.errors import ConfigError, InputError
from laionkit.core.progress import Steps
from laionkit.core.table import DatasetTable
from laionkit.ops.presets import Preset
from laionkit.stages.subset import steps
from laionkit.stages.subset.balance import balance_captions, cap_groups
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.contamination import decontaminate
from laionkit.stages.subset.pictures import locate
from laionkit.stages.subset.plan import Plan
from laionkit.stages.subset.selection import FunnelStep, Selection

# A folder of more files than this is slow to list and to move on most file systems.
MAX_FILES = 100_000
_ALIKE = {
    "exact": steps.drop_exact,
    "perceptual": steps.drop_perceptual,
    "semantic": steps.drop_semantic,
}


def choose(table: DatasetTable, config: SubsetConfig, plan: Plan, progress: Steps) -> Selection:
    """Run every step. Raises InputError where nothing is left, with the funnel."""
    selection = Selection(table, config.keep_nulls, progress=progress)
    take_steps(selection, config, plan, look=True)
    pictures = config.as_ != "parquet"
    if not selection.counts().ok:
        raise InputError(
            f"nothing is left, so nothing was written: {_in_words(selection.funnel())}"
        )
    if pictures and plan.preset and plan.preset.side_px and not config.allow_small:
        _check_stored_sides(selection, plan.preset)
    if config.as_ == "files" and selection.counts().ok > MAX_FILES:
        raise ConfigError(
            f"as=files is for up to {MAX_FILES:,} pictures and {selection.counts().ok:,} are "
            "left: use --as shards"
        )
    return selection


def take_steps(selection: Selection, config: SubsetConfig, plan: Plan, *, look: bool) -> None:
    """Run every step; without `look` leave out those that read tars."""
    at, pictures = selection.progress.at, config.as_ != "parquet"
    at("judging every sample")
    selection.judge(plan.terms, needs_picture=pictures)
    steps.take_from_subsets(selection, config)
    if config.query.strip() or config.queries:
        at("searching")
        steps.take_nearest(selection, config, plan.terms)
    if look and (pictures or "perceptual" in config.dedup):
        at("finding the pictures")
        locate(selection, selection.table.folder)
    if config.decontaminate:
        at("decontaminate")
        decontaminate(selection, config)
    for kind in _ALIKE:
        if kind in config.dedup and (look or kind != "perceptual"):
            at(f"dedup {kind}")
            _ALIKE[kind](selection, config)
    at("ranking and balancing")
    for column, share in plan.tops:
        selection.keep_top(column, share=share)
    if config.top is not None or config.top_share is not None:
        selection.keep_top(config.by, share=config.top_share, count=config.top)
    if config.cap is not None:
        cap_groups(selection, config)
    if config.balance:
        balance_captions(selection, config)


def _check_stored_sides(selection: Selection, preset: Preset) -> None:
    """Refuse pictures that were stored smaller than the preset's sides."""
    table = selection.table
    if not {"width", "height"} <= set(table.columns):
        return
    small, total, least = table.row(
        f"SELECT count(*) FILTER (greatest(width, height) < {preset.side_px}), count(*), "
        f"min(greatest(width, height)) FROM ({selection.left(['key', 'width', 'height'])})"
    )
    if small:
        raise ConfigError(
            f"preset {preset.name} is for sides of {preset.side_px} px, and {small} of {total} "
            f"pictures are stored smaller (from {least} px): fetch with --image-size "
            f"{preset.side_px} or more, or add --allow-small"
        )


def _in_words(funnel: Sequence[FunnelStep]) -> str:
    """A funnel in one line."""
    start = f"{funnel[0].seen} samples" if funnel else "0 samples"
    return ", ".join([start, *(f"{s.dropped} dropped by {s.name}" for s in funnel if s.dropped)])
