"""Training samples as PyTorch and webdataset take them: shuffled, shared out, resumable.

What is shuffled are places, not pictures: a buffer of 10,000 places costs next to nothing, and a
run that is resumed skips what it had without reading it. The order depends on the seed, the epoch
and the count of consumers alone.
"""

import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch.distributed
import torch.utils.data
import webdataset
from webdataset.compat import FluidInterface

Sample = dict[str, Any]
# Samples read at a time: on an object store their ranges are asked for together.
READ_AHEAD = 128


class OpenShard(Protocol):
    """A shard whose samples can be read in any order."""

    def read(self, rows: Sequence[int]) -> list[Sample]:
        """Samples: ``__key__``, ``__url__`` and each member's bytes under its extension."""

    def close(self) -> None:
        """Give back its file."""


class Shard(Protocol):
    """A shard of a subset. It is sent to worker processes."""

    @property
    def rows(self) -> int:
        """How many samples it holds."""

    def open(self) -> OpenShard:
        """Open it."""


class SampleStream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Samples of shards, each exactly once an epoch over all nodes and workers.

    `shuffle`: shards in random order, and places drawn from a buffer of that many; 0 keeps the
    order as it is. Each iteration is the next epoch. ``state_dict`` and ``load_state_dict`` are
    what torchdata's StatefulDataLoader calls in each worker; without workers call them yourself.
    """

    def __init__(self, shards: Sequence[Shard], *, shuffle: int = 0, seed: int = 0) -> None:
        """Stream `shards`."""
        super().__init__()
        self.shards, self.shuffle, self.seed = list(shards), shuffle, seed
        self._epoch, self._taken = 0, 0

    def __len__(self) -> int:
        """Samples in an epoch, over all nodes and workers."""
        return sum(shard.rows for shard in self.shards)

    def __iter__(self) -> Iterator[Sample]:
        """One epoch of this consumer's share; after ``load_state_dict`` the rest of one."""
        consumer, consumers = _place_among_consumers()
        rng = random.Random(f"{self.seed}-{self._epoch}-{consumer}")
        places = _shuffled(self._places(consumer, consumers), self.shuffle, rng)
        skip, self._taken = self._taken, 0
        opened: dict[int, OpenShard] = {}
        left: dict[int, int] = {}
        try:
            while window := list(itertools.islice(places, READ_AHEAD)):
                wanted = window[max(0, skip - self._taken) :]
                self._taken += len(window) - len(wanted)
                for sample in self._read(wanted, opened):
                    self._taken += 1
                    yield sample
                for shard, _, share in window:
                    left[shard] = left.get(shard, share) - 1
                    if not left[shard] and shard in opened:
                        opened.pop(shard).close()
        finally:
            for still_open in opened.values():
                still_open.close()
        self._epoch, self._taken = self._epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Where this consumer stands: epoch and samples taken in it."""
        return {"epoch": self._epoch, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from where `state` was taken, with the same count of consumers."""
        self._epoch, self._taken = int(state["epoch"]), int(state["taken"])

    def _read(
        self, places: Sequence[tuple[int, int, int]], opened: dict[int, OpenShard]
    ) -> list[Sample]:
        """The samples at `places`, those of one shard in one go."""
        by_shard: dict[int, list[int]] = {}
        for i, (shard, _, _) in enumerate(places):
            by_shard.setdefault(shard, []).append(i)
        found: dict[int, Sample] = {}
        for shard, where in by_shard.items():
            if shard not in opened:
                opened[shard] = self.shards[shard].open()
            samples = opened[shard].read([places[i][1] for i in where])
            found.update(zip(where, samples, strict=True))
        return [found[i] for i in range(len(places))]

    def _places(self, consumer: int, consumers: int) -> Iterator[tuple[int, int, int]]:
        """This consumer's (shard, row, rows of that shard that are its), whole shards if possible.

        Where there are fewer shards than consumers, each takes every n-th sample instead.
        """
        order = list(range(len(self.shards)))
        if self.shuffle:
            random.Random(f"{self.seed}-{self._epoch}").shuffle(order)
        whole = len(order) >= consumers
        for shard in order[consumer::consumers] if whole else order:
            rows = range(self.shards[shard].rows)
            mine = rows if whole else rows[consumer::consumers]
            for row in mine:
                yield shard, row, len(mine)


class SamplePipeline(webdataset.DataPipeline, FluidInterface):  # type: ignore[misc]
    """A webdataset pipeline over a SampleStream: ``.decode("pil").to_tuple("jpg", "txt")``."""

    def __init__(self, stream: SampleStream) -> None:
        """Begin a pipeline."""
        super().__init__(stream)
        self.stream = stream

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self.stream)

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from `state`."""
        self.stream.load_state_dict(state)


def _place_among_consumers() -> tuple[int, int]:
    """Which of how many consumers this process is: nodes (ranks) times loader workers."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    else:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    worker = torch.utils.data.get_worker_info()
    if worker is None:
        return rank, world
    return rank * worker.num_workers + worker.id, world * worker.num_workers


def _shuffled(
    places: Iterator[tuple[int, int, int]], size: int, rng: random.Random
) -> Iterator[tuple[int, int, int]]:
    """Draw places from a buffer of `size`."""
    if size < 2:
        yield from places
        return
    buffer: list[tuple[int, int, int]] = []
    for place in places:
        if len(buffer) < size:
            buffer.append(place)
            continue
        drawn = rng.randrange(size)
        yield buffer[drawn]
        buffer[drawn] = place
    rng.shuffle(buffer)
    yield from buffer
