"""The training example runs on a subset, and the loss falls."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from laionkit.stages.subset import SubsetConfig, subset
from tests import small_dataset
from tests.small_dataset import SmallDataset

SCRIPT = Path(__file__).parents[2] / "examples" / "train_open_clip_on_subset.py"
COLOURS = {"red": (0, 0, 255), "blue": (255, 0, 0), "green": (0, 255, 0), "white": (255, 255, 255)}
SHAPES = ("circle", "square", "triangle", "ring")
ROWS = [{"caption": f"a {colour} {shape}"} for colour in COLOURS for shape in SHAPES]


def draw(row: int) -> bytes:
    image_HWC = np.full((64, 64, 3), 60, np.uint8)
    colour, shape = COLOURS[list(COLOURS)[row // 4]], SHAPES[row % 4]
    if shape in ("circle", "ring"):
        cv2.circle(image_HWC, (32, 32), 20, colour, -1 if shape == "circle" else 5)
    else:
        corners = [(12, 52), (52, 52), (32, 12)] if shape == "triangle" else [
            (14, 14), (50, 14), (50, 50), (14, 50)]  # fmt: skip
        cv2.fillPoly(image_HWC, [np.array(corners)], colour)
    done, data = cv2.imencode(".jpg", image_HWC)
    assert done
    return data.tobytes()


@pytest.mark.slow  # minutes where other work keeps the cores busy
@pytest.mark.parametrize("form", ["shards", "view"])
def test_the_loss_falls_on_a_subset(tmp_path, monkeypatch, form):
    monkeypatch.setattr(small_dataset, "picture", draw)
    dataset = SmallDataset(tmp_path / "drawn", ROWS).write_metadata().write_shards()
    subset(dataset.url, SubsetConfig(name="best", as_=form))
    command = [sys.executable, str(SCRIPT), dataset.url, "best", "--steps", "15"]
    out = subprocess.run(
        [*command, "--batch-size", "16"],
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
    )
    report = json.loads(out.stdout)
    assert report["steps"] == 15
    assert report["last_loss"] < report["first_loss"]
