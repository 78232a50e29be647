"""embed and score killed at any moment and run again equal never killed; processes agree."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from laionkit.backends.heads.files import save_head
from laionkit.backends.heads.head import Head, Layer
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.stages.embed import EmbedConfig, embed
from laionkit.stages.score import ScoreConfig, score
from tests.stages.shards import shard_of, write_shards
from tests.stages.test_score import write_embeddings

SHARDS = 8
CODE = """
import sys
from laionkit.core.runner import Runner
from laionkit.stages.embed import EmbedConfig, embed
config = EmbedConfig(model=sys.argv[2], precision="fp32", batch_size=4, as_name="small")
embed(sys.argv[1], config, runner=Runner(device="cpu"))
"""
SCORE = """
import sys
from laionkit.stages.score import ScoreConfig, score
score(sys.argv[1], ScoreConfig(heads=(sys.argv[2],)))
"""


def dataset(path: Path):
    return write_shards(path, {f"{n:05d}": shard_of(n, 12) for n in range(SHARDS)})


def outputs(folder) -> dict[str, bytes]:
    names = [
        f"embeddings/small/{kind}/{name}"
        for kind in ("img_emb", "text_emb", "metadata", "dropped")
        for name in folder.names(f"embeddings/small/{kind}")
    ]
    names += [f"scores/clip_similarity/{n}" for n in folder.names("scores/clip_similarity")]
    return {name: folder.read_bytes(name) for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_clip):
    """The outputs of a run that was never stopped."""
    folder = dataset(tmp_path_factory.mktemp("whole"))
    settings = {"model": f"local-dir:{small_clip}", "precision": "fp32"}
    config = EmbedConfig(**settings, batch_size=4, as_name="small")
    embed(folder.url, config, runner=Runner(device="cpu"))
    return config, outputs(folder)


def with_mark(mark: str) -> list[str]:
    """Processes whose environment holds a mark (Linux)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
def test_killed_and_resumed_costs_only_shards_in_flight(whole, tmp_path, small_clip):
    config, expected = whole
    folder = dataset(tmp_path)
    records = StageRecords(folder, "embed/small")
    mark = uuid.uuid4().hex
    command = [sys.executable, "-c", CODE, folder.url, f"local-dir:{small_clip}"]
    process = subprocess.Popen(command, env={**os.environ, "LAIONKIT_MARK": mark})
    deadline = time.monotonic() + 120
    while len(records.names()) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(records.names())
    assert 2 <= finished < SHARDS
    while with_mark(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert with_mark(mark) == []
    assert embed(folder.url, config, runner=Runner(device="cpu")).skipped == finished
    assert outputs(folder) == expected


@pytest.mark.slow
def test_several_processes_give_the_same_bytes(whole, tmp_path):
    config, expected = whole
    folder = dataset(tmp_path)
    embed(folder.url, config, runner=Runner(device="cpu", workers=2))
    assert outputs(folder) == expected


@pytest.mark.slow
def test_score_killed_and_resumed_costs_only_shards_in_flight(tmp_path):
    """Random vectors and a head of our own, in shards enough to be met midway."""
    shards, facts = 400, {"backbone": "me/mine", "weights_sha256": "ab", "provenance": "declared"}
    emb_ND = np.random.default_rng(0).normal(size=(3 * shards, 32)).astype(np.float16)
    layer = Layer(np.ones((1, 32), np.float32), np.zeros(1, np.float32))
    save_head(tmp_path / "sum.safetensors", Head("sum", "me/mine", "", (layer,)))
    folder, never_killed = (
        write_embeddings(tmp_path / name, emb_ND, facts=facts, shards=shards) for name in "ab"
    )
    head = str(tmp_path / "sum.safetensors")
    records = StageRecords(folder, "score/sum")
    process = subprocess.Popen([sys.executable, "-c", SCORE, folder.url, head])
    deadline = time.monotonic() + 120
    while len(records.names()) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(records.names())
    assert 2 <= finished < shards
    config = ScoreConfig(heads=(head,))
    assert score(folder.url, config).skipped == finished
    score(never_killed.url, config)
    files = never_killed.names("scores/sum")
    assert len(files) == shards
    for name in files:
        path = f"scores/sum/{name}"
        assert folder.read_bytes(path) == never_killed.read_bytes(path)
