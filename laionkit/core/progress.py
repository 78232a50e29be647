"""Events a stage emits while it works. Who watches draws them; nobody here prints."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger("laionkit")


class Counts(BaseModel):
    """What became of samples: in = ok + Σ reasons, always."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    seen: int = Field(0, alias="in")
    ok: int = 0
    reasons: dict[str, int] = {}

    @classmethod
    def of(cls, ok: int, reasons: Mapping[str, int]) -> "Counts":
        """Counts of `ok` samples kept and the rest lost for `reasons`; zeros are left out."""
        lost = {str(k): n for k, n in sorted(reasons.items(), key=lambda kv: str(kv[0])) if n}
        return cls(seen=ok + sum(lost.values()), ok=ok, reasons=lost)

    def __add__(self, other: "Counts") -> "Counts":
        """Add two counts, reason by reason."""
        reasons = dict(self.reasons)
        for reason, n in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + n
        return Counts.of(self.ok + other.ok, reasons)

    def adds_up(self) -> bool:
        """Tell whether in = ok + Σ reasons."""
        return self.seen == self.ok + sum(self.reasons.values())


@dataclass(frozen=True)
class StageStarted:
    """A stage begins: shards in all, shards already done, samples in all where known."""

    stage: str
    shards: int
    done: int
    samples: int | None = None


@dataclass(frozen=True)
class SamplesDone:
    """Samples of shards still in flight were finished.

    `bytes_in` came over the network; `hosts` maps servers to how many samples were lost there;
    `gpu` is the share of the last moments that the worker's GPU computed, where it is known.
    """

    stage: str
    counts: Counts
    bytes_in: int = 0
    hosts: Mapping[str, int] = field(default_factory=dict)
    gpu: float | None = None


@dataclass(frozen=True)
class ShardDone:
    """A shard's record was committed."""

    stage: str
    shard: str
    counts: Counts
    seconds: float


@dataclass(frozen=True)
class Step:
    """What a stage that makes one thing is at; where it is known, how much of it is done."""

    stage: str
    step: str
    done: int = 0
    total: int | None = None
    unit: str = ""


@dataclass(frozen=True)
class Note:
    """A line the user should see (a warning when `level` is logging.WARNING)."""

    stage: str
    text: str
    level: int = logging.INFO


@dataclass(frozen=True)
class StageEnded:
    """A stage is over; `counts` are of this run's shards."""

    stage: str
    counts: Counts
    seconds: float
    extra: Mapping[str, object] = field(default_factory=dict)


Event = StageStarted | SamplesDone | ShardDone | Step | Note | StageEnded


class Progress(Protocol):
    """Who watches a run."""

    def emit(self, event: Event) -> None:
        """Take one event."""


class LogProgress:
    """Watches a run by logging: the default of the Python API."""

    def emit(self, event: Event) -> None:
        """Log notes and ends at their level, everything else at DEBUG."""
        if isinstance(event, Note):
            logger.log(event.level, "%s: %s", event.stage, event.text)
        elif isinstance(event, StageEnded):
            logger.info("%s: %s in %.1f s", event.stage, event.counts, event.seconds)
        else:
            logger.debug("%s", event)


@dataclass(frozen=True)
class Steps:
    """Tells who watches a run what one of its stages is at."""

    stage: str
    watch: Progress = field(default_factory=LogProgress)

    def at(self, step: str, done: int = 0, total: int | None = None, unit: str = "") -> None:
        """Tell the step, and how much of it is done."""
        self.watch.emit(Step(self.stage, step, done, total, unit))
