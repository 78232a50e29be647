"""Draw a run's events: bars on a terminal, JSON lines anywhere else. Both on stderr."""

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from laionkit.core.progress import (
    Event,
    Note,
    SamplesDone,
    ShardDone,
    StageEnded,
    StageStarted,
    Step,
)
from laionkit.core.progress import Progress as Watcher

LINE_EVERY_S = 10.0
# Hosts that a tally keeps apart; a run may meet millions.
MOST_HOSTS = 20_000


_drawing: list["Bars"] = []


def watcher(quiet: bool = False) -> Watcher:
    """Choose who watches: nobody, bars on a terminal, or JSON lines for a log."""
    if quiet:
        return Silence()
    if not sys.stderr.isatty():
        return JsonLines()
    _drawing.append(Bars())
    return _drawing[-1]


def stop() -> None:
    """Take bars off the screen, where a run ends before its stage: an error's line is next."""
    while _drawing:
        _drawing.pop().end()


class Silence:
    """Shows warnings alone."""

    def emit(self, event: Event) -> None:
        """Print a warning's text; drop everything else."""
        if isinstance(event, Note) and event.level >= logging.WARNING:
            print(event.text, file=sys.stderr)


class Tally:
    """What a running stage has done so far, from events of shards and of samples in them."""

    def __init__(self, started: StageStarted) -> None:
        """Start counting at `started`."""
        self.started, self.since = started, time.monotonic()
        self.seen = self.ok = self.bytes_in = 0
        self.shards = started.done
        self.reasons: Counter[str] = Counter()
        self.hosts: Counter[str] = Counter()
        self.streams_samples = False
        self.gpu: float | None = None

    def take(self, event: SamplesDone | ShardDone) -> None:
        """Count an event. A shard's counts are used where its samples were not reported."""
        if isinstance(event, SamplesDone):
            self.streams_samples = True
            self.bytes_in += event.bytes_in
            self._take_hosts(event.hosts)
            if event.gpu is not None:
                self.gpu = event.gpu if self.gpu is None else 0.9 * self.gpu + 0.1 * event.gpu
        else:
            self.shards += 1
        if isinstance(event, SamplesDone) or not self.streams_samples:
            self.seen += event.counts.seen
            self.ok += event.counts.ok
            self.reasons.update(event.counts.reasons)

    def _take_hosts(self, hosts: Mapping[str, int]) -> None:
        self.hosts.update(hosts)
        if len(self.hosts) > MOST_HOSTS:  # the rare ones will not be the worst
            self.hosts = Counter(dict(self.hosts.most_common(MOST_HOSTS // 2)))

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return max(1e-9, time.monotonic() - self.since)

    def rate(self) -> float:
        """Samples a second."""
        return self.seen / self.seconds

    def mbps(self) -> float:
        """Megabits a second that came over the network."""
        return self.bytes_in * 8e-6 / self.seconds

    def eta_s(self) -> float | None:
        """Seconds left at this rate; None where the end is not known."""
        if not self.started.samples or not self.seen:
            return None
        return max(0, self.started.samples - self.seen) / self.rate()

    def text(self) -> str:
        """Rate, success, GPU, bandwidth: a few words."""
        parts = [f"{self.rate():,.0f}/s"]
        if self.seen:
            parts.append(f"{100 * self.ok / self.seen:.1f}% ok")
        if self.gpu is not None:
            parts.append(f"GPU {self.gpu:.0%}")
        if self.bytes_in:
            parts.append(f"{self.mbps():.1f} Mbps")
        return " · ".join(parts)

    def lost(self) -> str:
        """The commonest reasons and the worst hosts, each with its losses; empty without any."""
        if not self.reasons:
            return ""
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.reasons.most_common(3))
        hosts = ", ".join(f"{host} {n:,}" for host, n in self.hosts.most_common(2))
        return f"lost {reasons}" + (f" · at {hosts}" if hosts else "")


class _Lines(Progress):
    """A bar with lines of words below it: beside it they would push it off a narrow terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then what it says in words."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            for words in filter(None, task.fields["words"]):
                yield Text(f"  {words}", style="dim", no_wrap=True, overflow="ellipsis")


class Bars:
    """A rich bar a stage; notes are printed above it."""

    def __init__(self) -> None:
        """Draw on stderr."""
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.tally: Tally | None = None
        self.step = ""

    def emit(self, event: Event) -> None:
        """Move the bar, print a note, or begin and end a stage's bar."""
        if isinstance(event, StageStarted):
            self._begin(event)
        elif isinstance(event, SamplesDone | ShardDone) and self.tally:
            self.tally.take(event)
            self._draw()
        elif isinstance(event, Step):
            self._draw_step(event)
        elif isinstance(event, Note):
            style = "yellow" if event.level >= logging.WARNING else "dim"
            self.console.print(
                f"{event.stage}: {event.text}",
                style=style,
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        elif isinstance(event, StageEnded):
            self.end()

    def _begin(self, event: StageStarted) -> None:
        self.end()
        self.tally = Tally(event)
        self.progress = _Lines(
            SpinnerColumn(),
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.progress.add_task(
            event.stage, total=event.shards or None, completed=event.done, words=(), unit="shards"
        )
        self.progress.start()

    def _draw(self) -> None:
        assert self.progress is not None and self.task is not None and self.tally is not None
        tally, started = self.tally, self.tally.started
        completed = float(tally.shards)
        if started.samples and tally.streams_samples:
            share = min(1.0, tally.seen / started.samples)
            completed = started.done + share * (started.shards - started.done)
        words = tally.text(), tally.lost()
        self.progress.update(self.task, completed=round(completed, 2), words=words)

    def _draw_step(self, event: Step) -> None:
        if self.progress is None or self.task is None:
            return
        if self.step != event.step:  # another step has its own end and pace
            self.step = event.step
            self.progress.remove_task(self.task)
            self.task = self.progress.add_task(event.stage, total=event.total, unit="", words=())
        self.progress.update(
            self.task,
            completed=event.done,
            total=event.total,
            unit=event.unit,
            words=(event.step,),
        )

    def end(self) -> None:
        """Take the bar away."""
        self.step = ""
        if self.progress is not None:
            self.progress.stop()
        self.progress = self.tally = self.task = None


class JsonLines:
    """One JSON object a line: stage begins and ends, notes, and a line every ten seconds."""

    def __init__(self) -> None:
        """Write to stderr."""
        self.tally: Tally | None = None
        self.step = ""
        self.said = 0.0

    def emit(self, event: Event) -> None:
        """Write the event, or count it until the next line is due."""
        if isinstance(event, StageStarted):
            self.tally, self.said = Tally(event), time.monotonic()
            self._say(event.stage, "start", shards=event.shards, done=event.done)
        elif isinstance(event, SamplesDone | ShardDone) and self.tally:
            self.tally.take(event)
            if time.monotonic() - self.said >= LINE_EVERY_S:
                self.said = time.monotonic()
                self._progress(event.stage, self.tally)
        elif isinstance(event, Step):
            self._say_step(event)
        elif isinstance(event, Note):
            level = logging.getLevelName(event.level).lower()
            self._say(event.stage, "note", level=level, text=event.text)
        elif isinstance(event, StageEnded):
            counts = event.counts.model_dump(by_alias=True)
            self._say(event.stage, "end", seconds=round(event.seconds, 2), **counts)

    def _progress(self, stage: str, tally: Tally) -> None:
        eta_s = tally.eta_s()
        fields = {
            "shards": tally.shards,
            "seen": tally.seen,
            "ok": tally.ok,
            "per_s": round(tally.rate(), 1),
            "bytes": tally.bytes_in,
            "mbps": round(tally.mbps(), 1),
            "eta_s": None if eta_s is None else round(eta_s),
            "reasons": dict(tally.reasons.most_common(5)),
            "worst_hosts": dict(tally.hosts.most_common(5)),
            "gpu": tally.gpu,
        }
        self._say(stage, "progress", **fields)

    def _say_step(self, event: Step) -> None:
        if self.step != event.step or time.monotonic() - self.said >= LINE_EVERY_S:
            self.step, self.said = event.step, time.monotonic()
            fields = {"step": event.step, "done": event.done, "total": event.total}
            self._say(event.stage, "progress", **fields, unit=event.unit)

    def _say(self, stage: str, event: str, **fields: object) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"time": stamp, "stage": stage, "event": event, **fields}
        print(json.dumps(line), file=sys.stderr, flush=True)
