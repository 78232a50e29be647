"""``subset``: from a question to a training set, and for each sample left out the reason.

plan.py checks what is asked, choosing.py takes the steps one after the other (selection.py keeps
the verdicts), making.py writes and publishes; what_if.py counts instead of writing.
"""

import time

from laionkit.core.files import Folder
from laionkit.core.progress import StageEnded, StageStarted, Steps
from laionkit.core.records import ShardRecord, StageRecords
from laionkit.core.runner import Runner, StageReport
from laionkit.core.table import DatasetTable
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.given import given_contents
from laionkit.stages.subset.layout import WHOLE
from laionkit.stages.subset.plan import make_plan
from laionkit.stages.subset.what_if import dry_run

__all__ = ["SubsetConfig", "subset"]


def subset(dataset: str, config: SubsetConfig, *, runner: Runner = Runner()) -> StageReport:
    """Write the subset that `config` describes below subsets/NAME, whole or not at all.

    Raises StaleOutput where that name holds another recipe, ConfigError for a filter or preset
    that cannot be, InputError where nothing would be left.
    """
    runner.require_whole("subset")
    started = time.monotonic()
    folder = Folder(dataset)
    records = StageRecords(folder, f"subset/{config.name}")
    with DatasetTable(folder, memory_mb=config.memory_mb, timeout_s=config.timeout_s) as table:
        plan = make_plan(table, config)
        if config.dry_run:
            return dry_run(table, config, plan, records)
        _forget_unfinished(records)
        given = given_contents(config)
        facts = {f"content of {name}": content for name, content in given.items()}
        config = runner.begin(records, config, facts=facts)
        done = records.finished(WHOLE, table.inputs)
        if done is not None:
            return _report(records, done, skipped=1)
        from laionkit.stages.subset.making import make  # what pictures need: not for a dry run

        runner.progress.emit(StageStarted(records.stage, 1, 0))
        try:
            progress = Steps(records.stage, runner.progress)
            record = make(table, config, plan, given, records, progress)
        except BaseException:
            _forget_unfinished(records)
            raise
        for note in plan.notes(table):
            runner.note(records.stage, note)
    seconds = time.monotonic() - started
    runner.progress.emit(StageEnded(records.stage, record.counts, seconds))
    return _report(records, record, skipped=0)


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


def _forget_unfinished(records: StageRecords) -> None:
    """Forget the recipe of a subset that was never finished: its name is free."""
    if records.made() is not None and not records.names():
        records.folder.remove("_stage.json")
