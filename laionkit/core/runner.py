"""The Runner: how a per-shard stage runs.

Workers in processes, several shards in flight in each, commit records, resume, retry of a shard
whose worker died, and counts that sum.
"""

import logging
import multiprocessing
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from laionkit.core.config import StageConfig
from laionkit.core.crew import Child, disk_full, feed, one_line
from laionkit.core.errors import ConfigError, LaionkitError, StageFailed, is_disk_full
from laionkit.core.files import Written
from laionkit.core.progress import (
    Counts,
    Event,
    LogProgress,
    Note,
    Progress,
    ShardDone,
    StageEnded,
    StageStarted,
)
from laionkit.core.records import FileEntry, ShardRecord, StageRecords
from laionkit.core.work import OpenWorker as OpenWorker
from laionkit.core.work import Outcome as Outcome
from laionkit.core.work import Site as Site
from laionkit.core.work import Task as Task
from laionkit.core.work import Worker as Worker

C = TypeVar("C", bound=StageConfig)

ATTEMPTS_PER_SHARD = 2


class StageReport(BaseModel):
    """What a stage did. `counts` cover every shard asked for, done now or found done."""

    model_config = ConfigDict(frozen=True)

    stage: str
    dataset: str
    counts: Counts = Counts()
    shards: int = 0
    skipped: int = 0
    seconds: float = 0.0
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = {}


@dataclass(frozen=True)
class Runner:
    """How stages run; nothing here changes what they compute.

    `workers`: processes, None for the stage's own default. `device`: ``auto cuda mps cpu``.
    `part`: (i, n), this machine does the i-th of n parts, 1-based. `fresh` sets output of another
    config aside, after `yes`.
    """

    workers: int | None = None
    device: str = "auto"
    part: tuple[int, int] = (1, 1)
    fresh: bool = False
    yes: bool = False
    progress: Progress = field(default_factory=LogProgress)

    def __post_init__(self) -> None:
        """Refuse a part that is none and a count of workers below one."""
        i, n = self.part
        if not 1 <= i <= n:
            raise ConfigError(f"part {i}/{n}: give i/n with 1 <= i <= n, such as 1/4")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers={self.workers}: at least 1")

    def note(self, stage: str, text: str, level: int = logging.INFO) -> None:
        """Tell the user a line."""
        self.progress.emit(Note(stage, text, level))

    def begin(
        self,
        records: StageRecords,
        config: C,
        *,
        auto: Mapping[str, Callable[[], Any]] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> C:
        """Settle `config` against what is on disk (StageRecords.begin), minding `fresh`."""
        if self.fresh and records.made() is not None:
            self._set_aside(records)
        return records.begin(config, auto=auto, facts=facts)

    def _set_aside(self, records: StageRecords) -> None:
        files, seconds = records.discard_plan()
        what = f"{len(files)} files ({', '.join(files[:3])}{', …' if len(files) > 3 else ''})"
        cost = f"{what}, {seconds / 3600:.2f} hours of work"
        if not self.yes:
            raise ConfigError(f"--fresh would set aside {cost} of {records.stage}: add --yes")
        self.note(records.stage, f"set aside {cost} in {records.set_aside()}")

    def require_whole(self, stage: str) -> None:
        """Refuse a part of a stage that is one piece of work. Raises ConfigError."""
        if self.part != (1, 1):
            raise ConfigError(f"{stage} is one piece of work: run it without --part")

    def is_mine(self, shard: str) -> bool:
        """Tell whether a shard belongs to this machine's part, whoever lists it and when."""
        i, n = self.part
        number = int(shard) if shard.isdigit() else zlib.crc32(shard.encode())
        return number % n == i - 1

    def run(
        self,
        records: StageRecords,
        config: StageConfig,
        tasks: Sequence[Task],
        open_worker: OpenWorker,
        *,
        workers: int = 1,
    ) -> StageReport:
        """Do every task of this part that has no record, and report on all of them.

        `open_worker` is pickled where there are several processes. A shard whose worker raised
        or died is tried once more; what fails again is named in a StageFailed at the end, after
        all other shards. A LaionkitError of a worker and a full disk stop the run at once.
        """
        started = time.monotonic()
        mine = [task for task in tasks if self.is_mine(task.shard)]
        done, found = set(), Counts()
        for task in mine:
            if record := records.finished(task.shard, task.inputs):
                done.add(task.shard)
                found = found + record.counts
        todo = [task for task in mine if task.shard not in done]
        samples = [task.samples for task in todo]
        known = sum(s for s in samples if s is not None) if None not in samples else None
        self.progress.emit(StageStarted(records.stage, len(mine), len(done), known))
        run = _Run(self, records, config, {task.shard: task for task in todo})
        count = min(self.workers or workers, max(1, len(todo)))
        if todo and count == 1:
            run.in_process(open_worker)
        elif todo:
            run.in_processes(open_worker, count)
        seconds = time.monotonic() - started
        self.progress.emit(StageEnded(records.stage, run.counts, seconds))
        run.raise_failures()
        return StageReport(
            stage=records.stage,
            dataset=records.dataset.url,
            counts=run.counts + found,
            shards=len(mine),
            skipped=len(done),
            seconds=round(seconds, 3),
        )


class _Run:
    """One pass of one stage: what waits, what is in flight, what failed."""

    def __init__(
        self, runner: Runner, records: StageRecords, config: StageConfig, tasks: dict[str, Task]
    ) -> None:
        self.runner, self.records, self.config, self.tasks = runner, records, config, tasks
        self.waiting = deque(tasks)
        self.attempts = dict.fromkeys(tasks, 0)
        self.failures: dict[str, str] = {}
        self.counts = Counts()
        made = records.made()
        self.fingerprint = made.fingerprint() if made else ""

    def site(self, worker: int, workers: int, report: Callable[[Event], None]) -> Site:
        part, parts = self.runner.part
        return Site(worker, workers, part, parts, self.runner.device, report)

    def take(self) -> str | None:
        """Hand out the next shard, None where nothing waits."""
        if not self.waiting:
            return None
        shard = self.waiting.popleft()
        self.attempts[shard] += 1
        return shard

    def commit(self, outcome: Outcome) -> None:
        inputs = self.tasks[outcome.shard].inputs
        record = self.record(self.fingerprint, outcome, outcome.files, outcome.counts, inputs)
        # The other stages' records go first: killed in between, this shard is redone with them.
        for stage, (files, counts) in outcome.also.items():
            records = StageRecords(self.records.dataset, stage)
            made = records.made()
            assert made is not None, f"{stage} was not begun"
            source = {self.records.stage: record.content()}
            records.commit(self.record(made.fingerprint(), outcome, files, counts, source))
        self.records.commit(record)
        self.counts = self.counts + outcome.counts
        self.runner.progress.emit(
            ShardDone(self.records.stage, outcome.shard, outcome.counts, outcome.seconds)
        )

    def record(
        self,
        made: str,
        outcome: Outcome,
        files: Mapping[str, Written],
        counts: Counts,
        inputs: Mapping[str, str],
    ) -> ShardRecord:
        return ShardRecord(
            shard=outcome.shard,
            fingerprint=made,
            inputs=dict(inputs),
            counts=counts,
            files={role: FileEntry.of(written) for role, written in files.items()},
            extra=dict(outcome.extra),
            effort=self.config.effort(),
            seconds=round(outcome.seconds, 3),
            finished_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def give_back(self, in_flight: set[str], why: str, detail: str) -> None:
        """Queue the shards of a worker that failed again, one by one, or give them up."""
        self.runner.note(self.records.stage, f"a worker failed: {why}", logging.WARNING)
        logging.getLogger("laionkit").debug("%s", detail)
        for shard in sorted(in_flight):
            if self.attempts[shard] < ATTEMPTS_PER_SHARD:
                self.waiting.append(shard)
            else:
                self.failures[shard] = why

    def raise_failures(self) -> None:
        if not self.failures:
            return
        shard, why = next(iter(sorted(self.failures.items())))
        raise StageFailed(
            f"{self.records.stage}: {len(self.failures)} of {len(self.tasks)} shards failed, "
            f"first {shard}: {why}. The others are done; run the same command again to retry."
        )

    def in_process(self, open_worker: OpenWorker) -> None:
        while self.waiting:
            in_flight: set[str] = set()
            try:
                with open_worker(self.site(0, 1, self.runner.progress.emit)) as worker:
                    for outcome in worker.process(feed(self.take, in_flight)):
                        self.commit(outcome)
                        in_flight.discard(outcome.shard)
            except LaionkitError:
                raise
            except Exception as error:  # the shard boundary: one bad shard must not stop the run
                _raise_if_disk_full(error, self.records)
                self.give_back(in_flight, one_line(error), traceback.format_exc())

    def in_processes(self, open_worker: OpenWorker, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        crew: dict[Connection, Child] = {}
        try:
            while self.waiting or crew:
                while len(crew) < count and self.waiting:
                    # The number of one that died, not of one that lives: each has its own GPU.
                    free = min(set(range(count)) - {child.number for child in crew.values()})
                    child = Child.start(context, open_worker, self.site(free, count, _mute))
                    crew[child.pipe] = child
                for pipe in wait(list(crew)):
                    assert isinstance(pipe, Connection)
                    if not self._serve(crew[pipe]):
                        crew.pop(pipe).join()
        finally:
            for child in crew.values():
                child.process.terminate()
            for child in crew.values():
                child.join()

    def _serve(self, child: "Child") -> bool:
        """Take one message from a child; False when the child is gone."""
        try:
            kind, payload = child.pipe.recv()
        except (EOFError, OSError):
            if child.in_flight or not child.said_bye:
                child.process.join()
                why = f"worker process died (exit code {child.process.exitcode})"
                self.give_back(child.in_flight, why, why)
            return False
        if kind == "next":
            shard = self.take()
            if shard is not None:
                child.in_flight.add(shard)
            child.pipe.send(shard)
        elif kind == "outcome":
            self.commit(payload)
            child.in_flight.discard(payload.shard)
        elif kind == "event":
            self.runner.progress.emit(payload)
        elif kind == "bye":
            child.said_bye = True
        elif kind == "stop":
            raise payload
        elif kind == "full":
            raise disk_full(self.records.dataset.url)
        elif kind == "failed":
            child.said_bye = True
            self.give_back(child.in_flight, *payload)
            child.in_flight = set()
        return True


def _mute(event: Event) -> None:
    """Stand in for a report function until the child process makes its own."""


def _raise_if_disk_full(error: Exception, records: StageRecords) -> None:
    if is_disk_full(error):
        raise disk_full(records.dataset.url) from error
