"""Killed at any moment and run again equals never killed, byte for byte."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.stages.fetch import FetchConfig, fetch
from tests.fault_server import FaultServer
from tests.stages.shards import picture
from tests.stages.test_fetch import data_bytes, make_dataset

_RUN = """
import sys
from laionkit.core.runner import Runner
from laionkit.stages.fetch import FetchConfig, fetch
if __name__ == "__main__":
    config = FetchConfig(allow_private=True, retries=1, backoff_s=0.05, concurrency=8)
    fetch(sys.argv[1], config, runner=Runner(workers=int(sys.argv[2])))
"""


def kill_and_resume(folder: Path, kills: int, links: int, workers: int) -> None:
    pictures = {f"{i}.jpg": picture(i, 120, 160) for i in range(20)}
    with FaultServer(pictures) as server:
        urls = [
            f"{server.url}/slow/0.02/{i}" if i % 7 == 0 else f"{server.url}/img/{i % 21}.jpg"
            for i in range(links)
        ]
        whole, broken = make_dataset(folder / "a", urls), make_dataset(folder / "b", urls)
        settings = FetchConfig(allow_private=True, retries=1, backoff_s=0.05, concurrency=8)
        fetch(whole, settings, runner=Runner(workers=1))
        script = folder / "run.py"
        script.write_text(_RUN)
        generator = random.Random(7)
        for _ in range(kills):
            process = subprocess.Popen(
                [sys.executable, str(script), broken, str(workers)], start_new_session=True
            )
            # A moment drawn by what was asked for, not by the clock.
            moment = server.requests.total() + generator.randint(1, links // kills)
            while process.poll() is None and server.requests.total() < moment:
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.05))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        left = len(StageRecords(Folder(broken), "fetch").names())
        assert left < links // 10  # the kills did come in the middle
        report = fetch(broken, settings, runner=Runner(workers=1))
        assert report.skipped == left
        assert report.counts.seen == links
        assert data_bytes(broken) == data_bytes(whole)


def test_killed_twice_and_resumed_gives_the_same_bytes(tmp_path):
    kill_and_resume(tmp_path, kills=2, links=150, workers=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_twenty_times_and_resumed_gives_the_same_bytes(tmp_path):
    kill_and_resume(tmp_path, kills=20, links=1500, workers=2)
