"""The diffusion example trains on a subset, its loss falls, and it paints."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from laionkit.stages.subset import SubsetConfig, subset
from tests.small_dataset import SmallDataset, laion_rows

SCRIPT = Path(__file__).parents[2] / "examples" / "train_diffusion_on_subset.py"


def test_a_few_steps_lower_the_loss_and_paint_a_sheet(tmp_path):
    dataset = SmallDataset(tmp_path / "drawn", laion_rows(24)).write_metadata().write_shards()
    subset(dataset.url, SubsetConfig(name="best", as_="view"))
    out = subprocess.run(
        [sys.executable, str(SCRIPT), dataset.url, "best", "--steps", "10", "--batch-size", "8",
         "--out", str(tmp_path / "out")],
        check=True, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
    )  # fmt: skip
    report = json.loads(out.stdout)
    assert report["steps"] == 10
    assert report["last_loss"] < report["first_loss"]
    with Image.open(tmp_path / "out/samples.png") as sheet:
        assert sheet.size[0] > 400
