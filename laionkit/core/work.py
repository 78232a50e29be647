"""What passes between a stage, its workers and the Runner: tasks, outcomes, and the worker's shape.

A stage hands over a worker: opened once per process with what is costly, then fed shards through
an iterator, from which it may take several before it yields the first outcome.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from laionkit.core.files import Written
from laionkit.core.progress import Counts, Event


@dataclass(frozen=True)
class Task:
    """One shard to do: its name, the content of what it is made of, its samples where known."""

    shard: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    samples: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a worker made of one shard; its files are in place when this is yielded.

    `also` holds files that the same pass made for other stages (scores made while embedding), as
    stage → (files, counts); their records name this shard's content as their input.
    """

    shard: str
    counts: Counts
    files: Mapping[str, Written]
    seconds: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    also: Mapping[str, tuple[Mapping[str, Written], Counts]] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """Where a worker runs: which of how many processes, on which part of how many machines."""

    worker: int = 0
    workers: int = 1
    part: int = 1
    parts: int = 1
    device: str = "auto"
    report: Callable[[Event], None] = lambda event: None

    @property
    def share(self) -> int:
        """Over how many processes, on all machines, a limit per host is divided."""
        return self.workers * self.parts


class Worker(Protocol):
    """Does shards. Opened once per process; `process` may keep several shards in flight."""

    def process(self, shards: Iterator[str]) -> Iterator[Outcome]:
        """Take shards, yield an outcome for each, in any order. One thread consumes `shards`."""


OpenWorker = Callable[[Site], AbstractContextManager[Worker]]
