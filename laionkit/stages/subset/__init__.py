"""``subset``: from a question to a training set, and for each sample left out the reason.

Steps in order, each over what the one before left: the picture is there, the preset, ``where``.
Written beside its final place and moved there whole: a reader never sees half a subset.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from laionkit.core.errors import ConfigError, InputError, StageFailed, is_disk_full
from laionkit.core.files import Folder, Written
from laionkit.core.progress import Counts, StageEnded, StageStarted
from laionkit.core.records import FileEntry, ShardRecord, StageRecords
from laionkit.core.runner import Runner, StageReport
from laionkit.core.schemas import SUBSETS
from laionkit.core.table import DatasetTable
from laionkit.ops.predicates import Term, parse_where
from laionkit.ops.presets import Preset, choose_preset
from laionkit.stages.subset import steps
from laionkit.stages.subset.balance import balance_captions, cap_groups, check_groups
from laionkit.stages.subset.card import write_card, write_croissant
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.contamination import decontaminate
from laionkit.stages.subset.export import Export, write_dropped, write_kept
from laionkit.stages.subset.facts import gather_facts
from laionkit.stages.subset.given import given_contents
from laionkit.stages.subset.loading import load
from laionkit.stages.subset.manifest import (
    WHOLE,
    Verified,
    find_record,
    samples_hash,
    verify,
    write_manifest,
)
from laionkit.stages.subset.pictures import locate
from laionkit.stages.subset.publish import push
from laionkit.stages.subset.report import write_report
from laionkit.stages.subset.reshape import Reshape
from laionkit.stages.subset.selection import FunnelStep, Selection
from laionkit.stages.subset.what_if import count_thresholds, estimated_bytes

__all__ = ["SubsetConfig", "Verified", "load", "push", "subset", "verify"]


# A folder of more files than this is slow to list and to move on most file systems.
MAX_FILES = 100_000
ALIKE = {
    "exact": steps.drop_exact,
    "perceptual": steps.drop_perceptual,
    "semantic": steps.drop_semantic,
}


@dataclass(frozen=True)
class _Plan:
    """What is to be done, checked against the columns there are."""

    terms: tuple[Term, ...]
    tops: tuple[tuple[str, float], ...]
    preset: Preset | None


def subset(dataset: str, config: SubsetConfig, *, runner: Runner = Runner()) -> StageReport:
    """Write the subset that `config` describes below subsets/NAME, whole or not at all.

    Raises StaleOutput where that name holds another recipe, ConfigError for a filter or preset
    that cannot be, InputError where nothing would be left.
    """
    started = time.monotonic()
    folder = Folder(dataset)
    records = StageRecords(folder, f"subset/{config.name}")
    with DatasetTable(folder, memory_mb=config.memory_mb, timeout_s=config.timeout_s) as table:
        plan = _plan(table, config)
        if config.dry_run:
            return _dry_run(table, config, plan, records)
        _forget_unfinished(records)
        given = given_contents(config)
        facts = {f"content of {name}": content for name, content in given.items()}
        config = runner.begin(records, config, facts=facts)
        done = records.finished(WHOLE, table.inputs)
        if done is not None:
            return _report(records, done, skipped=1)
        runner.progress.emit(StageStarted(records.stage, 1, 0))
        try:
            record = _make(table, config, plan, given, records, runner)
        except BaseException:
            _forget_unfinished(records)
            raise
    seconds = time.monotonic() - started
    runner.progress.emit(StageEnded(records.stage, record.counts, seconds))
    return _report(records, record, skipped=0)


def _plan(table: DatasetTable, config: SubsetConfig) -> _Plan:
    """Check every step before any work is done."""
    terms: list[Term] = []
    tops: list[tuple[str, float]] = []
    preset = None
    if config.preset:
        preset = choose_preset(config.preset, table.columns, config.language)
        for step in preset.steps:
            if step.top is None:
                terms += parse_where(step.condition, table.columns).terms
            else:
                tops.append((step.column, step.top))
    if config.where.strip():
        terms += parse_where(config.where, table.columns).terms
    for term in terms:
        table.check(term.sql)
    Reshape.of(config)
    if config.caption not in table.columns and config.as_ in ("shards", "files"):
        raise ConfigError(
            f"caption={config.caption!r} is no column; there are {', '.join(table.columns)}"
        )
    _check_columns(table, config)
    return _Plan(tuple(terms), tuple(tops), preset)


def _check_columns(table: DatasetTable, config: SubsetConfig) -> None:
    """Refuse names that are no columns or subsets before any work."""
    if config.by:
        steps.check_column(table, config.by, "by")
    if config.dedup:
        steps.keep_rule(table, config.dedup_keep)
    check_groups(table, config)
    for name in (*config.any_of, *config.all_of, *config.none_of):
        find_record(table.folder, name)
    if config.name in (*config.any_of, *config.all_of, *config.none_of):
        raise ConfigError(f"name={config.name!r}: a subset cannot be made of itself")


def _make(
    table: DatasetTable,
    config: SubsetConfig,
    plan: _Plan,
    given: Mapping[str, str],
    records: StageRecords,
    runner: Runner,
) -> ShardRecord:
    started = time.monotonic()
    selection = _select(table, config, plan)
    folder = records.dataset
    partial = f"{SUBSETS}/.{config.name}.partial"
    _remove_tree(folder, partial)
    try:
        target = folder.folder(partial)
        export = write_kept(selection, folder, target, config)
        _drop_lost(selection, export)
        export.files["dropped"] = write_dropped(selection, target)
        counts, funnel = selection.counts(), selection.funnel()
        _check_sum(table, counts, export, records)
        if export.sizes:
            export.files["sizes"] = target.write_json("sizes.json", export.sizes)
        hashed = samples_hash(target)
        export.files["manifest"], root = write_manifest(
            target, folder, config, counts, hashed, given
        )
        _document(selection, target, config, plan, export, root)
        record = _record(table, config, records, export, counts, funnel, started)
        _publish(folder, partial, f"{SUBSETS}/{config.name}")
    except OSError as error:
        if is_disk_full(error):
            raise StageFailed(
                f"no space left on the disk of {folder}: nothing of {config.name} was published"
            ) from error
        raise
    finally:
        _remove_tree(folder, partial)
    records.commit(record)
    for note in _notes(table, plan):
        runner.note(records.stage, note)
    return record


def _choose(table: DatasetTable, config: SubsetConfig, plan: _Plan, *, look: bool) -> Selection:
    """Run every step; without `look` leave out those that read tars."""
    selection = Selection(table, config.keep_nulls)
    pictures = config.as_ != "parquet"
    selection.judge(plan.terms, needs_picture=pictures)
    steps.take_from_subsets(selection, config)
    if config.query.strip() or config.queries:
        steps.take_nearest(selection, config, plan.terms)
    if look and (pictures or "perceptual" in config.dedup):
        locate(selection, table.folder)
    if config.decontaminate:
        decontaminate(selection, config)
    for kind in ALIKE:
        if kind in config.dedup and (look or kind != "perceptual"):
            ALIKE[kind](selection, config)
    for column, share in plan.tops:
        selection.keep_top(column, share=share)
    if config.top is not None or config.top_share is not None:
        selection.keep_top(config.by, share=config.top_share, count=config.top)
    if config.cap is not None:
        cap_groups(selection, config)
    if config.balance:
        balance_captions(selection, config)
    return selection


def _document(
    selection: Selection,
    target: Folder,
    config: SubsetConfig,
    plan: _Plan,
    export: Export,
    root: str,
) -> None:
    """Write what people and other tools read of a subset."""
    facts = gather_facts(selection, plan.terms, config.by, _notes(selection.table, plan), root)
    export.files["card"] = write_card(target, config, facts, export)
    export.files["croissant"] = write_croissant(target, config, facts, export)
    export.files["report"] = write_report(selection, target, config, facts)


def _select(table: DatasetTable, config: SubsetConfig, plan: _Plan) -> Selection:
    """Run every step. Raises InputError where nothing is left, with the funnel."""
    selection = _choose(table, config, plan, look=True)
    pictures = config.as_ != "parquet"
    if not selection.counts().ok:
        raise InputError(f"nothing is left, so nothing was written: {_said(selection.funnel())}")
    if pictures and plan.preset and plan.preset.side_px and not config.allow_small:
        _check_stored_sides(selection, plan.preset)
    if config.as_ == "files" and selection.counts().ok > MAX_FILES:
        raise ConfigError(
            f"as=files is for up to {MAX_FILES:,} pictures and {selection.counts().ok:,} are "
            "left: use --as shards"
        )
    return selection


def _drop_lost(selection: Selection, export: Export) -> None:
    """Drop the pictures that could not be resized or re-encoded."""
    for reason in sorted({reason for _, reason in export.lost}):
        keys = [key for key, why in export.lost if why == reason]
        lost = pa.table({"key": keys, "value": pa.nulls(len(keys), pa.string())})
        selection.drop("picture re-encoded", reason, lost)


def _dry_run(
    table: DatasetTable, config: SubsetConfig, plan: _Plan, records: StageRecords
) -> StageReport:
    """Count and write nothing. Steps that read pictures are left out."""
    started = time.monotonic()
    selection = Selection(table, config.keep_nulls)
    pictured = config.as_ != "parquet"
    found = count_thresholds(selection, plan.terms, needs_picture=pictured)
    if _needs_rows(config, plan):
        selection = _choose(table, config, plan, look=False)
    counts, funnel = selection.counts(), selection.funnel()
    size = estimated_bytes(selection, counts.ok) if pictured else 0
    return StageReport(
        stage=records.stage,
        dataset=records.dataset.url,
        counts=counts,
        seconds=round(time.monotonic() - started, 3),
        extra={
            "dry_run": True,
            "funnel": [[step.name, step.seen, step.dropped] for step in funnel],
            "thresholds": {curve.condition: [list(p) for p in curve.points] for curve in found},
            "bytes": size,
        },
    )


def _needs_rows(config: SubsetConfig, plan: _Plan) -> bool:
    """Whether a step looks at more than one row, so that counting is not enough."""
    return bool(
        plan.tops
        or config.any_of
        or config.all_of
        or config.none_of
        or config.keys
        or config.query
        or config.queries
        or config.decontaminate
        or config.dedup
        or config.top
        or config.top_share
        or config.cap
        or config.balance
    )


def _check_stored_sides(selection: Selection, preset: Preset) -> None:
    """Refuse pictures that were stored smaller than the preset's sides."""
    table = selection.table
    if not {"width", "height"} <= set(table.columns):
        return
    small, total, least = table.execute(
        f"SELECT count(*) FILTER (greatest(width, height) < {preset.side_px}), count(*), "
        f"min(greatest(width, height)) FROM ({selection.left(['key', 'width', 'height'])})"
    ).fetchone()
    if small:
        raise ConfigError(
            f"preset {preset.name} is for sides of {preset.side_px} px, and {small} of {total} "
            f"pictures are stored smaller (from {least} px): fetch with --image-size "
            f"{preset.side_px} or more, or add --allow-small"
        )


def _notes(table: DatasetTable, plan: _Plan) -> tuple[str, ...]:
    if plan.preset is None:
        return ()
    used = ", ".join(f"{name} ({table.origins[name]})" for name in plan.preset.used)
    return (f"preset {plan.preset.name} read {used}",)


def _check_sum(table: DatasetTable, counts: Counts, export: Export, records: StageRecords) -> None:
    """In = kept + Σ reasons, and what was written is what was counted."""
    if counts.seen != table.rows or export.rows != counts.ok:
        raise StageFailed(
            f"{records.stage}: {table.rows} samples came in, {export.rows} were written and "
            f"{counts.seen - counts.ok} dropped: the dataset changed meanwhile; run again"
        )


def _record(
    table: DatasetTable,
    config: SubsetConfig,
    records: StageRecords,
    export: Export,
    counts: Counts,
    funnel: Sequence[FunnelStep],
    started: float,
) -> ShardRecord:
    made = records.made()
    base = f"{SUBSETS}/{config.name}"
    files = {
        role: FileEntry.of(Written(f"{base}/{written.path}", written.size, written.sha256))
        for role, written in export.files.items()
    }
    return ShardRecord(
        shard=WHOLE,
        fingerprint=made.fingerprint() if made else "",
        inputs=table.inputs,
        counts=counts,
        files=files,
        extra={"funnel": [[step.name, step.seen, step.dropped] for step in funnel]},
        effort=config.effort(),
        seconds=round(time.monotonic() - started, 3),
        finished_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _publish(folder: Folder, partial: str, final: str) -> None:
    """Put the finished folder in its place; what was there goes only then."""
    old = f"{partial}.old"
    _remove_tree(folder, old)
    if folder.exists(final):
        folder.move(final, old)
    folder.move(partial, final)
    _remove_tree(folder, old)


def _remove_tree(folder: Folder, name: str) -> None:
    if folder.exists(name):
        folder.fs.rm(folder.at(name), recursive=True)


def _forget_unfinished(records: StageRecords) -> None:
    """Forget the recipe of a subset that was never finished: its name is free."""
    if records.made() is not None and not records.names():
        records.folder.remove("_stage.json")


def _report(records: StageRecords, record: ShardRecord, *, skipped: int) -> StageReport:
    return StageReport(
        stage=records.stage,
        dataset=records.dataset.url,
        counts=record.counts,
        shards=1,
        skipped=skipped,
        seconds=record.seconds,
        outputs=tuple(entry.path for entry in record.files.values()),
        extra={"funnel": record.extra["funnel"]},
    )


def _said(funnel: Sequence[FunnelStep]) -> str:
    """A funnel in one line."""
    start = f"{funnel[0].seen} samples" if funnel else "0 samples"
    return ", ".join([start, *(f"{s.dropped} dropped by {s.name}" for s in funnel if s.dropped)])
