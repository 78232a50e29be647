"""Subsets as the oldest webdataset that laionkit supports reads them, open_clip's training with it.

It lies in a folder of its own, which `make test` fills, and is tried in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laionkit.stages.subset import SubsetConfig, subset
from tests.small_dataset import SmallDataset, laion_rows

ROWS = 25
OLDEST = "0.2.86"
FOLDER = Path(os.environ.get("LAIONKIT_OLDEST", Path(sys.prefix) / "oldest"))

READ = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import numpy, torch, webdataset
import open_clip_train.data as data
from laionkit import load

assert webdataset.__version__ == sys.argv[2], webdataset.__version__
folder = Path(sys.argv[1]) / "subsets" / "best"
tars = sorted(str(p) for p in folder.glob("*.tar"))
args = SimpleNamespace(train_data=str(folder / "{00000..00002}.tar"), train_num_samples=None,
    train_data_upsampling_factors=None, dataset_resampled=False, seed=0, batch_size=4, workers=0,
    world_size=1)
training = data.get_wds_dataset(args, lambda i: torch.from_numpy(numpy.array(i.convert("RGB"))),
    is_train=True, tokenizer=lambda text: [str(text)])
print(json.dumps({
    "plain": [s["__key__"] for s in webdataset.WebDataset(tars).decode("pil") if s["jpg"].size],
    "shards": [s["__key__"] for s in load(sys.argv[1], "best", shuffle=0).decode("pil")],
    "view": [s["__key__"] for s in load(sys.argv[1], "view", shuffle=0).decode("pil")],
    "open_clip": [text for _, texts in training.dataloader for text in texts],
}))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SmallDataset:
    if not (FOLDER / "webdataset").is_dir():
        pytest.skip(
            f"no webdataset {OLDEST} in {FOLDER}: pip install --no-deps --target {FOLDER} "
            f"webdataset=={OLDEST}"
        )
    made = SmallDataset(tmp_path_factory.mktemp("oldest") / "laion", laion_rows(ROWS))
    made.write_metadata().write_shards({3: "timeout"})
    for name, form in (("best", "shards"), ("view", "view")):
        config = SubsetConfig(name=name, as_=form, samples_per_shard=10, shuffle_seed=1)
        subset(made.url, config)
    return made


def test_every_sample_is_read_by_each(dataset):
    paths = [str(FOLDER), str(Path(__file__).resolve().parents[2])]
    out = subprocess.run(
        [sys.executable, "-c", READ, dataset.url, OLDEST],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout.splitlines()[-1])
    kept = pq.read_table(dataset.path / "subsets/best/kept.parquet")
    assert found["plain"] == found["shards"] == found["view"] == kept["key"].to_pylist()
    assert set(found["open_clip"]) == set(kept["caption"].to_pylist())
