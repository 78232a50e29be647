"""metadata: any LAION-style table, or a folder of pictures, in; a clean and filtered work list out.

Row by row, in the order of the sources: columns get their canonical names and types, filters and
lists are asked, malformed rows go to the ledger (``metadata/dropped.parquet``, one reason each);
then what only all rows together tell (duplicates, a shuffle); what is kept gets its key. The stage
is global: a killed run starts again clean, since nothing counts before its records.
"""

import contextlib
import re
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.progress import Counts, StageEnded, StageStarted
from laionkit.core.records import FileEntry, ShardRecord, StageRecords
from laionkit.core.runner import Runner, StageReport
from laionkit.core.schemas import METADATA, RECORDS, SHARD_RECORDS
from laionkit.core.status import without_superseded
from laionkit.core.worklist import PART_ROLE, unfinished_batches
from laionkit.stages.metadata.config import MetadataConfig
from laionkit.stages.metadata.inspection import Inspection, inspect
from laionkit.stages.metadata.plan import Plan, check_filters
from laionkit.stages.metadata.reading import Reader, Run, Start
from laionkit.stages.metadata.rerun import Changes, forget_unfinished, look_again
from laionkit.stages.metadata.scratch import SCRATCH

# What metadata/ holds of ours; anything else there is left alone.
_OURS = re.compile(r"part-\d{5,}\.parquet|dropped(-\d{5,})?\.parquet")

__all__ = ["Inspection", "MetadataConfig", "inspect", "metadata"]


def metadata(
    sources: Sequence[str],
    dataset: str,
    config: MetadataConfig = MetadataConfig(),
    *,
    runner: Runner = Runner(),
) -> StageReport:
    """Read the sources into the dataset's work list; a second identical call finds it done.

    Raises InputError for a source that is not there, whose links cannot be found or that changes
    while it is read, and StaleOutput where the work list was made of other sources.
    """
    runner.require_whole("metadata")
    if not sources:
        raise ConfigError("name at least one SOURCE: a file, a folder, a glob or a URL")
    started = time.monotonic()
    folder = Folder(dataset)
    records = StageRecords(folder, METADATA)
    plan = Plan.make(sources, config, partial(runner.note, METADATA))
    _require_elsewhere(folder, plan)
    check_filters(plan, config)
    _clear_unfinished(records)
    settled = runner.begin(records, config, auto={"shard_digits": plan.digits_needed(config)})
    made = list(records.all())
    changes = look_again(folder, plan)
    notes = (*plan.notes(), *filter(None, [changes.note()]))
    for note in notes:
        runner.note(METADATA, note)
    if made:
        if not config.append:
            _require_same_beside(folder, plan, made)
        is_same = any(record.inputs == plan.identities for record in made)
        if changes.any or not is_same:
            _require_append(folder, plan, config, made)
        if not changes.any and (is_same or set(plan.identities) == plan.pictures):
            return _report(records, made, made, started, notes)
    runner.progress.emit(StageStarted(METADATA, len(plan.tables), 0, plan.total()))
    try:
        run = Reader(folder, plan, settled, runner, _start(folder, made)).run()
        plan.require_unchanged()
    except BaseException:
        _clear_unfinished(records)
        raise
    if settled.keep_keys:
        _require_unique(folder, settled, run, made)
    start, seconds = _start(folder, made), time.monotonic() - started
    changes.write(folder, start.batch)
    _commit(records, settled, plan, run, changes, start, seconds)
    runner.progress.emit(StageEnded(METADATA, run.counts, seconds))
    found = _notes_of(run, settled, is_first=not made)
    for note in found:
        runner.note(METADATA, note)
    notes += found
    return _report(records, list(records.all()), made, started, notes)


def _require_elsewhere(folder: Folder, plan: Plan) -> None:
    """Refuse to read what would be written over."""
    if not folder.is_local:
        return
    home = folder.local_path(METADATA).resolve()
    for name in plan.identities:
        if "://" not in name and Path(name).resolve().is_relative_to(home):
            raise InputError(
                f"{name} lies where the work list is written: name another DATASET, or move it"
            )


def _clear_unfinished(records: StageRecords) -> None:
    """Forget a run that was cut off: its records, files and scratch; a first one's config, too."""
    made = list(records.all())
    lost = unfinished_batches(made)
    for record in lost:
        records.folder.remove(f"{record.shard}.json")
    if len(lost) == len(made):
        records.folder.remove("_stage.json")
    whole = [record for record in made if record not in lost]
    forget_unfinished(records.dataset, {record.extra["batch"] for record in whole})
    kept = {entry.path for record in whole for entry in record.files.values()}
    for name in records.dataset.names(METADATA):
        if _OURS.fullmatch(name) and f"{METADATA}/{name}" not in kept:
            records.dataset.remove(f"{METADATA}/{name}")
    if records.dataset.is_local:
        for half in records.dataset.local_path(METADATA).glob(".*.tmp"):
            half.unlink(missing_ok=True)
        shutil.rmtree(records.dataset.local_path(SCRATCH), ignore_errors=True)
        home = records.dataset.local_path()
        for empty in (home / METADATA, home / RECORDS / METADATA, home / RECORDS, home):
            with contextlib.suppress(OSError):  # one that holds something stays
                empty.rmdir()


def _require_append(
    folder: Folder, plan: Plan, config: MetadataConfig, made: Sequence[ShardRecord]
) -> None:
    """Refuse other sources than those that are there, unless they are to be added to them.

    A folder of pictures that was read before is looked through again without being asked to.
    """
    known = {name for record in made for name in record.inputs}
    if config.append or (plan.identities and set(plan.identities) <= plan.pictures & known):
        return
    was, now = ", ".join(sorted(known)), ", ".join(plan.identities)
    if set(plan.identities) <= known:
        was, now = now, "other content under that name"
    raise StaleOutput(
        f"{folder}/metadata was made of {was}; this run has {now}. "
        "Add it as new shards: --append. Start over: --fresh (what is there is moved aside)."
    )


def _require_same_beside(folder: Folder, plan: Plan, made: Sequence[ShardRecord]) -> None:
    """Refuse to call a work list done that was judged by another list or joined with another."""
    latest = max(made, key=lambda record: record.extra["batch"]).extra.get("beside")
    changed = [n for n, identity in plan.beside.items() if latest and latest.get(n) != identity]
    if changed:
        raise StaleOutput(
            f"{changed[0]} has changed since {folder}/metadata was made by it. Start over: --fresh "
            "(what is there is moved aside). Apply it to new sources alone: --append."
        )


def _start(folder: Folder, made: Sequence[ShardRecord]) -> Start:
    """Where new shards and parts begin, after those that are there.

    Shards of links that healed (``fetch --retry``) have numbers of their own, past the work
    list's: they are counted too.
    """
    if not made:
        return Start()
    extras = [record.extra for record in made]
    listed = max(extra["first_shard"] + extra["shards"] for extra in extras)
    fetched = (int(n) + 1 for n in StageRecords(folder, SHARD_RECORDS).names() if n.isdigit())
    return Start(max(extra["batch"] for extra in extras) + 1, max([listed, *fetched]), len(made))


def _require_unique(
    folder: Folder, config: MetadataConfig, run: Run, made: Sequence[ShardRecord]
) -> None:
    """Refuse keys that were taken from a column and stand twice, leaving nothing of the run."""
    from laionkit.backends.unique_keys import find_repeated_key

    new = [part.file.path for part in run.parts]
    old = [record.files[PART_ROLE].path for record in made]
    twice = find_repeated_key(folder, new, old, "key")
    if twice is not None:
        for path in new:
            folder.remove(path)
        if run.ledger is not None:
            folder.remove(run.ledger.path)
        _clear_unfinished(StageRecords(folder, METADATA))
        raise InputError(f"--keep-keys {config.keep_keys}: key {twice[0]!r} stands twice")


def _commit(
    records: StageRecords,
    config: MetadataConfig,
    plan: Plan,
    run: Run,
    changes: Changes,
    start: Start,
    seconds: float,
) -> None:
    """Write one record a part; the first one carries what was dropped."""
    made = records.made()
    assert made is not None, "begin() stores what a stage is made with"
    for i, part in enumerate(run.parts):
        files = {PART_ROLE: FileEntry.of(part.file)}
        extra: dict[str, Any] = {
            "batch": start.batch,
            "parts": len(run.parts),
            "first_shard": part.first_shard,
            "shards": part.shards,
            "beside": plan.beside,
        }
        if i == 0:
            sets = {r.set_name for r in plan.readings}
            extra |= {"sets": sorted(sets), "kept_null": run.kept_null, "joined": run.matched}
            extra |= {"superseded": len(changes.superseded)}
            if run.ledger is not None:
                files["dropped"] = FileEntry.of(run.ledger)
        records.commit(
            ShardRecord(
                shard=part.name,
                fingerprint=made.fingerprint(),
                inputs=plan.identities,
                counts=Counts.of(part.rows, run.counts.reasons if i == 0 else {}),
                files=files,
                extra=extra,
                effort=config.effort(),
                seconds=round(seconds, 3),  # all parts were on their way at once
                finished_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
        )


def _notes_of(run: Run, config: MetadataConfig, *, is_first: bool) -> tuple[str, ...]:
    notes = [
        f"{name} is null in {count:,} rows, which a filter that asks it lets pass (or: --null drop)"
        for name, count in sorted(run.kept_null.items())
    ]
    if run.matched is not None:
        notes.append(f"--join {config.join}: {run.matched:,} rows matched by {config.on}")
    if run.unread:
        notes.append(run.unread)
    if is_first and not run.counts.ok:
        notes.append("no row is left: nothing can be fetched of this")
    return tuple(notes)


def _report(
    records: StageRecords,
    made: Sequence[ShardRecord],
    before: Sequence[ShardRecord],
    started: float,
    notes: tuple[str, ...] = (),
) -> StageReport:
    counts, superseded = Counts(), 0
    for record in made:
        counts = counts + record.counts
        superseded += record.extra.get("superseded", 0)
    return StageReport(
        stage=METADATA,
        dataset=records.dataset.url,
        counts=without_superseded(counts, superseded),
        shards=_shards(made),
        skipped=_shards(before),
        seconds=round(time.monotonic() - started, 3),
        outputs=tuple(entry.path for record in made for entry in record.files.values()),
        notes=notes,
    )


def _shards(made: Sequence[ShardRecord]) -> int:
    """How many shards of links these parts hold."""
    return sum(record.extra["shards"] for record in made)
