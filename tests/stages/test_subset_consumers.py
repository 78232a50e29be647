"""Subsets as the real consumers read them: datasets, open_clip's training, an SDXL-like loop."""

import functools
import gc
import importlib.util
import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import open_clip_train.data as open_clip_data
import pyarrow.parquet as pq
import pytest
import torch
import webdataset

from laionkit.core.records import StageRecords
from laionkit.core.schemas import METADATA
from laionkit.stages.subset import SubsetConfig, subset
from tests.small_dataset import SmallDataset, laion_rows

ROWS = 45
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning",  # webdataset leaves its tars to the collector
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SmallDataset:
    made = SmallDataset(tmp_path_factory.mktemp("consumers") / "laion", laion_rows(ROWS))
    made.write_metadata().write_shards({3: "timeout"})
    links = StageRecords(made.folder, METADATA)
    sources = {"hf://datasets/laion/some-set@main/a.parquet": "x", "/private/b.parquet": "y"}
    links.commit(links.read("part-00000").model_copy(update={"inputs": sources}))
    # null in the first five samples and typed after: what trips a reader that guesses types
    made.write_score("aesthetic_v2", {i: None if i < 8 else i / 9 for i in range(ROWS)})
    config = SubsetConfig(name="best", samples_per_shard=10, shuffle_seed=1)
    subset(made.url, config)
    subset(made.url, SubsetConfig(name="list", as_="parquet"))
    return made


@pytest.fixture
def kept(dataset) -> list[str]:
    return pq.read_table(dataset.path / "subsets/best/kept.parquet")["key"].to_pylist()


def test_datasets_reads_the_folder_with_the_types_of_its_card(dataset, kept, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = shutil.copytree(dataset.path / "subsets/best", tmp_path / "best")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["__key__"] == kept
    assert loaded.features["json"]["aesthetic_v2"].dtype == "float32"
    assert loaded.features["json"]["punsafe"].dtype == "float64"
    row = loaded[5]
    assert row["jpg"].size == (32, 32)
    assert row["json"]["original_width"] >= 300
    streamed = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert [row["__key__"] for row in streamed] == kept
    del loaded, streamed
    gc.collect()


def test_datasets_reads_a_list_of_links(dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = shutil.copytree(dataset.path / "subsets/list", tmp_path / "list")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == ROWS - 1
    assert loaded[0]["url"].startswith("http://")


def test_open_clip_s_training_pipeline_reads_every_sample_and_the_sizes(dataset, kept, monkeypatch):
    # open_clip is written for webdataset <= 0.2.86, which marks no end of a shard; later
    # releases do, by an empty sample that open_clip trips over
    expand = functools.partial(open_clip_data.tar_file_expander, eof_value=None)
    monkeypatch.setattr(open_clip_data, "tar_file_expander", expand)
    folder = dataset.path / "subsets/best"
    shards = f"{folder}/{{00000..00004}}.tar"
    samples, count = open_clip_data.get_dataset_size(shards)
    assert (samples, count) == (len(kept), 5)
    args = SimpleNamespace(
        train_data=shards,
        train_num_samples=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=4,
        workers=0,
        world_size=1,
    )

    def pixels(image):
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy())

    info = open_clip_data.get_wds_dataset(
        args, pixels, is_train=True, tokenizer=lambda text: [torch.tensor([len(str(text))])]
    )
    assert info.dataloader.num_samples >= len(kept)
    batches = list(info.dataloader)
    assert len(batches) == math.ceil(len(kept) / 4)
    assert batches[0][0].shape == (4, 32, 32, 3)
    gc.collect()


def test_a_loop_like_diffusers_sdxl_script_keeps_every_sample(dataset, kept):
    """examples/research_projects/diffusion webdataset scripts filter on these JSON fields."""

    def wanted(row: dict) -> bool:
        sides = row.get("original_width", 0.0) or 0.0, row.get("original_height", 0.0) or 0.0
        return min(sides) >= 300 and (row.get("pwatermark", 1.0) or 1.0) <= 0.5

    urls = sorted(str(p) for p in (dataset.path / "subsets/best").glob("*.tar"))
    pipeline = (
        webdataset.WebDataset(urls, shardshuffle=False)
        .decode("pil", handler=webdataset.reraise_exception)
        .rename(image="jpg;png;jpeg;webp", text="text;txt;caption", orig_size="json")
    )
    found = [s for s in pipeline if wanted(s["orig_size"])]
    assert [s["__key__"] for s in found] == kept
    assert found[0]["text"].startswith("picture number")
    gc.collect()


def test_croissant_describes_the_rows(dataset, tmp_path):
    if importlib.util.find_spec("mlcroissant") is None:
        pytest.skip("mlcroissant is not installed")
    folder = dataset.path / "subsets/best"
    check = (
        "import mlcroissant as m, sys; d = m.Dataset(jsonld=sys.argv[1]);"
        "print(len(list(d.records('kept'))))"
    )
    out = subprocess.run(
        [sys.executable, "-c", check, str(folder / "croissant.json")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.split()[-1] == str(ROWS - 1)


def test_croissant_names_the_published_sets_that_the_links_are_of(dataset):
    described = json.loads((dataset.path / "subsets/best/croissant.json").read_text())
    assert described["isBasedOn"] == ["https://huggingface.co/datasets/laion/some-set"]
    assert "url" not in described  # a subset has no page of its own until it is pushed


def test_croissant_names_every_file_with_its_hash(dataset):
    folder = dataset.path / "subsets/best"
    described = json.loads((folder / "croissant.json").read_text())
    names = {entry["contentUrl"] for entry in described["distribution"]}
    assert {p.name for p in folder.glob("*.tar")} < names
    fields = [f["source"]["extract"]["column"] for f in described["recordSet"][0]["field"]]
    assert set(fields) <= set(pq.read_schema(folder / "kept.parquet").names)
