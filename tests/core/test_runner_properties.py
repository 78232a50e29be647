"""What holds of the Runner whatever the shards, the machines and the moments it is stopped at."""

import functools
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from laionkit.core.config import StageConfig
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import StageRecords
from laionkit.core.runner import Outcome, Runner, Site, Task

shard_names = st.lists(
    st.one_of(st.integers(0, 99_999).map("{:05d}".format), st.text("abc-09", min_size=1)),
    unique=True,
    max_size=12,
)


@given(shard_names, st.integers(1, 9))
def test_every_shard_is_the_part_of_exactly_one_machine(shards, machines):
    runners = [Runner(part=(i + 1, machines)) for i in range(machines)]
    for shard in shards:
        assert sum(runner.is_mine(shard) for runner in runners) == 1


class StoppedWorker:
    """Writes a file a shard, holding some in flight; is stopped at a step counted over all."""

    def __init__(self, url: str, held: int, steps: Iterator[int], stop_at: int, _: Site) -> None:
        self.folder, self.held, self.steps, self.stop_at = Folder(url), held, steps, stop_at

    def __enter__(self) -> "StoppedWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self) -> None:
        if next(self.steps) == self.stop_at:
            raise KeyboardInterrupt

    def process(self, shards: Iterator[str]) -> Iterator[Outcome]:
        held: list[str] = []
        for shard in shards:
            self.step()
            held.append(shard)
            if len(held) > self.held:
                yield self.done(held.pop(0))
        while held:
            yield self.done(held.pop())  # not in the order they came in

    def done(self, shard: str) -> Outcome:
        with self.folder.create(f"out/{shard}.txt") as file:
            file.write(shard.encode())
            self.step()
            file.write(b" is done")
        self.step()
        written = self.folder.write_bytes(f"out/{shard}.size", b"8")
        return Outcome(shard, Counts.of(len(shard), {}), {"size": written})


def run(folder: Path, shards: list[str], held: int, stop_at: int) -> bool:
    """Run until the end or until it is stopped; tell whether it came to its end."""
    records = StageRecords(Folder(folder), "copy")
    config = Runner().begin(records, StageConfig())
    opener = functools.partial(StoppedWorker, str(folder), held, count(), stop_at)
    try:
        report = Runner().run(records, config, [Task(name) for name in shards], opener)
    except KeyboardInterrupt:
        return False
    assert report.counts == Counts.of(sum(map(len, shards)), {})
    assert report.shards == len(shards)
    return True


def state(folder: Path) -> dict[str, object]:
    """Every file, records without the times at which they were made."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, data = str(path.relative_to(folder)), path.read_bytes()
        if ".laionkit" in name:
            found[name] = {**json.loads(data), "finished_at": "", "seconds": 0}
        else:
            found[name] = data
    return found


@given(shard_names, st.integers(0, 3), st.lists(st.integers(0, 20), max_size=4))
def test_stopped_anywhere_and_resumed_equals_never_stopped(tmp_path_factory, shards, held, moments):
    whole, stopped = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("stopped")
    assert run(whole, shards, held, stop_at=-1)
    for moment in moments:
        run(stopped, shards, held, stop_at=moment)
    assert run(stopped, shards, held, stop_at=-1)
    assert state(stopped) == state(whole)
