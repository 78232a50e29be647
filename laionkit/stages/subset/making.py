"""Making a subset: written beside its final place and moved there whole, or not at all."""

import time
from collections.abc import Mapping, Sequence

import pyarrow as pa

from laionkit.core.errors import StageFailed, is_disk_full
from laionkit.core.files import Folder, Written
from laionkit.core.progress import Counts, Steps
from laionkit.core.records import FileEntry, ShardRecord, StageRecords
from laionkit.core.schemas import SUBSETS
from laionkit.core.table import DatasetTable
from laionkit.stages.subset.card import write_card, write_croissant
from laionkit.stages.subset.choosing import choose
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.export import Export, write_dropped, write_kept
from laionkit.stages.subset.facts import Facts, Survey, gather_facts, survey
from laionkit.stages.subset.kept import KeptRows
from laionkit.stages.subset.layout import WHOLE
from laionkit.stages.subset.manifest import samples_hash, write_manifest
from laionkit.stages.subset.plan import Plan
from laionkit.stages.subset.report import write_report
from laionkit.stages.subset.selection import FunnelStep, Selection


def make(
    table: DatasetTable,
    config: SubsetConfig,
    plan: Plan,
    given: Mapping[str, str],
    records: StageRecords,
    progress: Steps,
) -> ShardRecord:
    """Make and publish what `plan` keeps; the record of it, committed.

    Raises StageFailed where the disk is full, InputError where nothing is left.
    """
    started = time.monotonic()
    selection = choose(table, config, plan, progress)
    folder = records.dataset
    partial = f"{SUBSETS}/.{config.name}.partial"
    _remove_tree(folder, partial)
    try:
        target = folder.folder(partial)
        surveyed: list[Survey] = []
        export = write_kept(
            selection,
            folder,
            target,
            config,
            meanwhile=lambda: surveyed.append(survey(selection, plan.terms)),
        )
        _drop_lost(selection, export)
        export.files["dropped"] = write_dropped(selection, target)
        counts, funnel = selection.counts(), selection.funnel()
        _check_sum(table, counts, export, records)
        if export.sizes:
            export.files["sizes"] = target.write_json("sizes.json", export.sizes)
        progress.at("hashing and describing")
        hashed = samples_hash(target)
        export.files["manifest"], root = write_manifest(
            target, folder, config, counts, hashed, given
        )
        with KeptRows(target, timeout_s=config.timeout_s) as kept:
            facts = gather_facts(selection, config, plan, surveyed[0], kept, root)
        _document(target, config, facts, export)
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
    return record


def _document(target: Folder, config: SubsetConfig, facts: Facts, export: Export) -> None:
    """Write what people and other tools read of a subset."""
    export.files["card"] = write_card(target, config, facts, export)
    export.files["croissant"] = write_croissant(target, config, facts, export)
    export.files["report"] = write_report(target, config, facts)


def _drop_lost(selection: Selection, export: Export) -> None:
    """Drop the pictures that could not be resized or re-encoded."""
    for reason in sorted({reason for _, reason in export.lost}):
        keys = [key for key, why in export.lost if why == reason]
        lost = pa.table({"key": keys, "value": pa.nulls(len(keys), pa.string())})
        selection.drop("picture re-encoded", reason, lost)


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
