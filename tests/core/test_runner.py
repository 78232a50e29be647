"""The Runner: resume, retry, several processes, counts that sum."""

import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from laionkit.core.config import Effort, StageConfig
from laionkit.core.errors import ConfigError, InputError, StageFailed, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import StageRecords
from laionkit.core.runner import Outcome, Runner, Site, Task


class CopyConfig(StageConfig):
    """A toy stage's config."""

    text: str = "hello"
    """What each file says."""
    retries: Effort[int] = 2
    """How often to try."""


class Optional(StageConfig):
    """A toy config with a setting that may be left out."""

    lists: int | None = None
    """How many, if it matters."""
    depth: int = 3
    """How deep."""


class CopyWorker:
    """Writes one file a shard; misbehaves on the shards it is told to, once or always."""

    def __init__(self, url: str, config: CopyConfig, bad: dict[str, str], site: Site) -> None:
        self.folder, self.config, self.bad, self.site = Folder(url), config, bad, site

    def __enter__(self) -> "CopyWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def process(self, shards: Iterator[str]) -> Iterator[Outcome]:
        for shard in shards:
            self.misbehave(shard)
            written = self.folder.write_bytes(f"out/{shard}.txt", self.config.text.encode())
            yield Outcome(shard, Counts.of(9, {"timeout": 1}), {"text": written}, seconds=1.0)

    def misbehave(self, shard: str) -> None:
        kind = self.bad.get(shard, "")
        first = not self.folder.exists(f"seen-{shard}")
        self.folder.write_bytes(f"seen-{shard}", b"")
        if kind == "always" or (kind == "once" and first):
            raise ValueError("bad shard")
        if kind == "die" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "input":
            raise InputError("the model file is not there")


TASKS = [Task(f"{i:05d}", {"src": "a"}, 10) for i in range(6)]


def run_copy(folder: Path, runner: Runner, bad: dict[str, str] | None = None, **config: object):
    records = StageRecords(Folder(folder), "copy")
    settled = runner.begin(records, CopyConfig.build(config, "copy"))
    opener = functools.partial(CopyWorker, str(folder), settled, bad or {})
    return runner.run(records, settled, TASKS, opener)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_run_does_nothing_and_reports_the_same_counts(tmp_path, workers):
    runner = Runner(workers=workers)
    first, second = run_copy(tmp_path, runner), run_copy(tmp_path, runner)
    assert (first.shards, first.skipped, second.skipped) == (6, 0, 6)
    assert first.counts == second.counts == Counts.of(54, {"timeout": 6})
    assert first.counts.adds_up()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_that_fails_once_is_retried(tmp_path, workers):
    assert run_copy(tmp_path, Runner(workers=workers), {"00002": "once"}).counts.ok == 54


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_that_always_fails_is_named_after_all_others_are_done(tmp_path, workers):
    with pytest.raises(StageFailed, match="1 of 6 shards failed, first 00002: ValueError"):
        run_copy(tmp_path, Runner(workers=workers), {"00002": "always"})
    assert len(StageRecords(Folder(tmp_path), "copy").names()) == 5


def test_a_worker_that_is_killed_costs_no_shard(tmp_path):
    report = run_copy(tmp_path, Runner(workers=2), {"00001": "die", "00004": "die"})
    assert report.counts.ok == 54


class NumberedWorker(CopyWorker):
    """Number 0 dies at first; number 1 waits until there is a number 0 again."""

    def __init__(self, url: str, site: Site) -> None:
        super().__init__(url, CopyConfig(), {}, site)
        if site.worker == 0:
            if not self.folder.exists("died"):
                self.folder.write_bytes("died", b"")
                os.kill(os.getpid(), signal.SIGKILL)
            with open(self.folder.at("pipe"), "w"):  # noqa: PTH123 - opened to be met, not read
                pass

    def process(self, shards: Iterator[str]) -> Iterator[Outcome]:
        if self.site.worker == 1:
            with open(self.folder.at("pipe")):  # noqa: PTH123
                pass
        yield from super().process(shards)


def test_a_worker_that_died_is_replaced_under_its_own_number(tmp_path):
    """Numbers choose GPUs: another's number would leave one idle and crowd another."""
    os.mkfifo(tmp_path / "pipe")
    runner = Runner(workers=2)
    records = StageRecords(Folder(tmp_path), "copy")
    config = runner.begin(records, CopyConfig())
    opener = functools.partial(NumberedWorker, str(tmp_path))
    assert runner.run(records, config, TASKS, opener).counts.seen == 60


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_user_stops_the_run_with_its_own_line(tmp_path, workers):
    with pytest.raises(InputError, match="the model file is not there"):
        run_copy(tmp_path, Runner(workers=workers), {"00000": "input"})


def test_another_config_is_stale_output_that_names_the_flag_that_keeps_it(tmp_path):
    run_copy(tmp_path, Runner())
    with pytest.raises(StaleOutput, match=r"made with text='hello'.*--text hello.*--fresh"):
        run_copy(tmp_path, Runner(), text="bye")


def test_what_was_made_without_a_flag_is_kept_by_leaving_it_out(tmp_path):
    StageRecords(Folder(tmp_path), "copy").begin(Optional())
    with pytest.raises(StaleOutput, match=r"Keep it: add --depth 3, leave out --lists\. Start"):
        StageRecords(Folder(tmp_path), "copy").begin(Optional(lists=5, depth=4))


def test_effort_is_never_compared(tmp_path):
    run_copy(tmp_path, Runner())
    assert run_copy(tmp_path, Runner(), retries=9).skipped == 6


def test_fresh_wants_yes_and_sets_aside_what_was_there(tmp_path):
    run_copy(tmp_path, Runner())
    with pytest.raises(ConfigError, match=r"6 files \(out/00000.txt.*add --yes"):
        run_copy(tmp_path, Runner(fresh=True), text="bye")
    assert run_copy(tmp_path, Runner(fresh=True, yes=True), text="bye").skipped == 0
    assert (tmp_path / "out/00000.txt").read_text() == "bye"
    assert [p.read_text() for p in tmp_path.glob(".laionkit/aside/*/out/00000.txt")] == ["hello"]


def test_what_is_set_aside_in_one_second_stays_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20220330T120000")
    for text in ("one", "two", "three"):
        run_copy(tmp_path, Runner(fresh=True, yes=True), text=text)
    aside = {p.read_text() for p in tmp_path.glob(".laionkit/aside/*/out/00000.txt")}
    assert aside == {"one", "two"}


def test_changed_inputs_redo_a_shard(tmp_path):
    run_copy(tmp_path, Runner())
    records = StageRecords(Folder(tmp_path), "copy")
    assert records.finished("00000", {"src": "b"}) is None
    assert records.finished("00000", {"src": "a"}) is not None


def test_parts_cover_each_shard_exactly_once(tmp_path):
    reports = [run_copy(tmp_path, Runner(part=(i, 4))) for i in (1, 2, 3, 4)]
    assert sum(r.shards for r in reports) == 6
    assert sum(r.counts.ok for r in reports) == 54


def test_a_part_outside_its_count_is_refused():
    with pytest.raises(ConfigError, match="part 5/4"):
        Runner(part=(5, 4))


def test_a_part_of_what_is_one_piece_of_work_is_refused():
    Runner().require_whole("index")
    with pytest.raises(ConfigError, match="index is one piece of work: run it without --part"):
        Runner(part=(1, 2)).require_whole("index")


def test_an_unknown_setting_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean retries"):
        CopyConfig.build({"retrys": 3}, "recipe.yaml: copy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retrys": 3}, r"no setting is called 'retrys' \(did you mean retries\?\)$"),
        ({"retries": "many"}, r"retries='many': Input should be a valid integer, [^\n]*$"),
    ],
)
def test_a_config_made_in_python_says_what_is_wrong_in_one_line(settings, message):
    with pytest.raises(ConfigError, match="^" + message):
        CopyConfig(**settings)
