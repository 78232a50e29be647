"""What a running stage shows: rate, time to go, the GPU, reasons."""

import json
import re
import sys
import time

import pytest

from laionkit.cli.progress import Bars, JsonLines, Tally, stop, watcher
from laionkit.core.progress import (
    Counts,
    Note,
    SamplesDone,
    ShardDone,
    StageEnded,
    StageStarted,
    Step,
)
from laionkit.core.runner import Runner
from laionkit.stages.embed import EmbedConfig, embed
from tests.stages.shards import shard_of, write_shards


def done(ok: int, gpu: float | None = None, **reasons: int) -> SamplesDone:
    return SamplesDone("embed/m", Counts.of(ok, reasons), gpu=gpu)


def test_a_tally_tells_rate_time_to_go_gpu_and_reason():
    tally = Tally(StageStarted("embed/m", shards=4, done=0, samples=400))
    assert tally.eta_s() is None
    tally.since = time.monotonic() - 10
    tally.take(done(90, gpu=0.98, decode_failed=8, not_an_image=2))
    assert tally.rate() == pytest.approx(10, rel=0.01)
    assert tally.eta_s() == pytest.approx(30, rel=0.01)
    assert tally.text() == "10/s · 90.0% ok · GPU 98%"
    assert tally.lost() == "lost 8 decode_failed, 2 not_an_image"
    tally.take(ShardDone("embed/m", "00000", Counts.of(90, {"decode_failed": 10}), 1.0))
    assert tally.seen == 100


def test_on_a_narrow_terminal_the_bar_its_end_and_the_losses_are_all_there(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    bars = Bars()
    bars.emit(StageStarted("fetch", shards=40, done=10, samples=300))
    lost = {"http_server_error": 1234, "http_not_found": 77, "timeout": 9}
    hosts = {"a-long-name.of-a-server.example": 1200, "b.example": 120}
    bars.emit(SamplesDone("fetch", Counts.of(100, lost), 5_000_000, hosts))
    bars.emit(Note("fetch", "no [server] answers: " + "waiting " * 12))
    assert bars.progress is not None
    bars.progress.refresh()
    bars.emit(StageEnded("fetch", Counts(), 1.0))
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", capsys.readouterr().err)
    assert "40/40 shards" in shown
    assert "7.0% ok" in shown
    assert "lost 1,234 http_server_error, 77 http_not_found, 9 timeout · at a-long" in shown
    assert "no [server] answers" in shown


def test_an_error_finds_the_screen_without_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    watcher().emit(StageStarted("fetch", shards=40, done=10, samples=300))
    stop()
    print("laionkit: no", file=sys.stderr)
    shown = capsys.readouterr().err
    assert shown.endswith("laionkit: no\n")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor: hidden, shown


def test_nothing_is_said_that_nobody_knows():
    tally = Tally(StageStarted("embed/m", shards=4, done=0, samples=None))
    tally.take(done(5))
    assert tally.eta_s() is None
    assert "GPU" not in tally.text()


def test_a_log_gets_the_same_as_json(tmp_path, small_clip, capsys, monkeypatch):
    monkeypatch.setattr("laionkit.cli.progress.LINE_EVERY_S", 0.0)
    samples = [*shard_of(0, 5), ("000000009", b"<html>", "x")]
    folder = write_shards(tmp_path, {"00000": samples})
    config = EmbedConfig(model=f"local-dir:{small_clip}", precision="fp32", batch_size=2)
    embed(folder.url, config, runner=Runner(device="cpu", progress=JsonLines()))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines][0::4] == ["start", "progress"]
    (last,) = [line for line in lines if line["event"] == "progress"][-1:]
    assert (last["seen"], last["ok"], last["reasons"]) == (6, 5, {"not_an_image": 1})
    assert last["eta_s"] == 0
    assert last["per_s"] > 0
    assert last["gpu"] is None


def test_steps_of_a_stage_that_makes_one_thing_each_have_a_bar_and_a_line(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    bars, lines = Bars(), JsonLines()
    for event in (
        StageStarted("subset/a", 1, 0),
        Step("subset/a", "judging every sample"),
        Step("subset/a", "dedup semantic", 7, 10, "parts"),
        Step("subset/a", "writing", 0, 2000, "samples"),
        Step("subset/a", "writing", 1000, 2000, "samples"),
    ):
        bars.emit(event)
    assert bars.progress is not None
    bars.progress.refresh()
    bars.emit(StageEnded("subset/a", Counts(), 1.0))
    bars.emit(Step("subset/a", "writing"))  # nothing to draw it on
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", capsys.readouterr().err)
    assert "1000/2000 samples" in shown
    assert "  writing" in shown
    for done in (0, 5, 10):
        lines.emit(Step("subset/a", "dedup semantic", done, 10, "parts"))
    lines.emit(Step("subset/a", "writing"))
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["step"], line["done"], line["total"]) for line in said] == [
        ("dedup semantic", 0, 10),
        ("writing", 0, None),
    ]
