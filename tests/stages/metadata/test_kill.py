"""Killed at any moment and run again equals never killed, byte for byte; nothing is left over."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.stages.metadata import MetadataConfig, metadata
from laionkit.stages.metadata.scratch import SCRATCH

ROWS = 6_000
CHOSEN = {"where": "score >= 0.2", "dedup": "url", "shuffle": True, "shard_size": 10}
CODE = """
import json, sys
from laionkit.stages.metadata import MetadataConfig, metadata
config = MetadataConfig(**json.loads(sys.argv[3]))
metadata([sys.argv[1]], sys.argv[2], config)
"""


def write_links(path: Path, first: int) -> Path:
    table = pa.table({
        "url": [f"http://h{i % 7}.example/{i - i % 10 // 9}" for i in range(first, first + ROWS)],
        "text": [f"picture {i}" for i in range(ROWS)],
        "score": [(i * 37 % 100) / 100 for i in range(ROWS)],
    })  # fmt: skip
    pq.write_table(table, path, row_group_size=1_000)
    return path


def outputs(dataset: Path) -> dict[str, object]:
    """Every file of the work list, and what its records say but for times."""
    files = {path.name: path.read_bytes() for path in (dataset / "metadata").iterdir()}
    records = StageRecords(Folder(dataset), "metadata").all()
    untimed = {"seconds": 0, "finished_at": ""}
    return {**files, **{r.shard: r.model_copy(update=untimed).model_dump() for r in records}}


def run(source: Path, dataset: Path, config: MetadataConfig) -> subprocess.Popen[bytes]:
    chosen = config.model_dump_json()
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(source), str(dataset), chosen], start_new_session=True
    )


def kill_and_resume(folder: Path, kills: int, config: MetadataConfig) -> None:
    first, second = write_links(folder / "1.parquet", 0), write_links(folder / "2.parquet", ROWS)
    whole, broken = folder / "whole", folder / "broken"
    started = time.monotonic()
    metadata([str(first)], str(whole), config)
    longest = time.monotonic() - started
    more = config.model_copy(update={"append": True})
    metadata([str(second)], str(whole), more)
    generator = random.Random(5)
    for source, chosen in ((first, config), (second, more)):
        for _ in range(kills):
            process = run(source, broken, chosen)
            until = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < until:
                if (broken / SCRATCH).exists():
                    break
                time.sleep(0.002)
            time.sleep(generator.uniform(0, longest))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        metadata([str(source)], str(broken), chosen)
    assert outputs(broken) == outputs(whole)
    assert not (broken / SCRATCH).exists()


def test_killed_and_resumed_gives_the_same_bytes(tmp_path):
    kill_and_resume(tmp_path, 1, MetadataConfig(**CHOSEN))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes where other work keeps the cores busy
@pytest.mark.parametrize("ledger", ["full", "counts"])
def test_killed_often_and_resumed_gives_the_same_bytes(tmp_path, ledger):
    kill_and_resume(tmp_path, 10, MetadataConfig(**CHOSEN, ledger=ledger))


def test_what_a_killed_run_left_does_not_stay(tmp_path):
    source = write_links(tmp_path / "1.parquet", 0)
    config = MetadataConfig(**CHOSEN)
    metadata([str(source)], str(tmp_path / "d"), config)
    (tmp_path / "d/.laionkit/metadata/part-00003.json").unlink()
    (tmp_path / "d/metadata/.part-00004.parquet.123.tmp").write_bytes(b"half")
    few = MetadataConfig(where="score > 0.9", shard_size=10)
    metadata([str(source)], str(tmp_path / "d"), few)
    metadata([str(source)], str(tmp_path / "e"), few)
    assert outputs(tmp_path / "d") == outputs(tmp_path / "e")
