"""The training script runs and writes a folder that loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from laionkit.backends.tiny import load_tiny

SCRIPT = Path(__file__).parents[2] / "examples" / "train_tiny_clip.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "tiny"
    command = [sys.executable, SCRIPT, "--steps", "3", "--batch-size", "32", "--out", out]
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    subprocess.run([str(part) for part in command], check=True, timeout=240, env=env)
    return out


def test_a_short_run_writes_a_model_that_loads(folder: Path) -> None:
    model, _, tokenizer = load_tiny(folder=folder)
    with torch.inference_mode():
        assert torch.isfinite(model.encode_text(tokenizer(["a red star"]))).all()


def test_a_short_run_says_what_it_measured(folder: Path) -> None:
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    assert measured["steps"] == 3
    for name in ("colour_accuracy", "shape_accuracy", "recall_at_10"):
        assert 0 <= measured[name] <= 1


def test_the_committed_tokenizer_is_the_one_the_script_makes(folder: Path) -> None:
    committed = SCRIPT.parents[1] / "laionkit" / "backends" / "tiny" / "tokenizer.json"
    assert (folder / "tokenizer.json").read_bytes() == committed.read_bytes()
