"""Copies of pictures: resized and re-encoded where asked, and as single files."""

import io
import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from laionkit.core.errors import ConfigError
from laionkit.stages.subset import SubsetConfig, subset
from laionkit.stages.subset.loading import load
from laionkit.stages.subset.manifest import verify
from tests import small_dataset
from tests.small_dataset import SmallDataset, laion_rows

ROWS = 25


@pytest.fixture
def dataset(tmp_path) -> SmallDataset:
    return SmallDataset(tmp_path / "laion", laion_rows(ROWS)).write_metadata().write_shards()


def run(dataset: SmallDataset, name: str, **settings: object):
    return subset(dataset.url, SubsetConfig.build({"name": name, **settings}, "subset"))


def samples(dataset: SmallDataset, name: str) -> list[dict]:
    return list(load(dataset.url, name, shuffle=0))


def sides(data: bytes) -> tuple[str, tuple[int, int]]:
    with Image.open(io.BytesIO(data)) as image:
        return image.format, image.size


def test_pictures_are_resized_and_the_row_and_the_json_say_so(dataset):
    report = run(dataset, "small", resize_mode="center_crop", image_size=16, encode_format="webp")
    assert report.counts.ok == ROWS
    found = samples(dataset, "small")
    assert [sides(sample["webp"]) for sample in found] == [("WEBP", (16, 16))] * ROWS
    assert {tuple(json.loads(s["json"])[side] for side in ("width", "height")) for s in found} == {
        (16, 16)
    }
    kept = pq.read_table(dataset.path / "subsets/small/kept.parquet")
    assert kept["width"].to_pylist() == kept["height"].to_pylist() == [16] * ROWS
    assert kept["original_height"][0].as_py() == small_dataset.original_size(0)[1]
    assert verify(dataset.url, "small").ok
    assert "name: webp" in (dataset.path / "subsets/small/README.md").read_text()


def test_a_picture_that_resizing_would_not_change_keeps_its_bytes(dataset):
    run(dataset, "plain")
    run(dataset, "same", resize_mode="keep_ratio", image_size=64, resize_only_if_bigger=True)
    ours = [sample["jpg"] for sample in samples(dataset, "same")]
    assert ours == [sample["jpg"] for sample in samples(dataset, "plain")]


def test_a_picture_that_cannot_be_decoded_is_a_row_of_the_ledger(tmp_path, monkeypatch):
    whole = small_dataset.picture
    monkeypatch.setattr(
        small_dataset, "picture", lambda row: whole(row)[: 200 if row == 3 else None]
    )
    dataset = SmallDataset(tmp_path / "laion", laion_rows(ROWS)).write_metadata().write_shards()
    report = run(dataset, "small", resize_mode="center_crop", image_size=16)
    assert report.counts.ok == ROWS - 1
    lost = pq.read_table(dataset.path / "subsets/small/dropped.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in lost] == [(dataset.key(3), "truncated_image")]
    assert ["picture re-encoded", ROWS, 1] in report.extra["funnel"]
    assert verify(dataset.url, "small").ok


def test_forms_without_copies_cannot_be_resized(dataset):
    with pytest.raises(ConfigError, match="use --as shards or --as files"):
        run(dataset, "bad", as_="view", encode_format="png")


def test_single_files_hold_what_shards_hold(dataset):
    run(dataset, "tars", shuffle_seed=3)
    run(dataset, "files", shuffle_seed=3, as_="files")
    folder = dataset.path / "subsets/files/files"
    assert len(list(folder.iterdir())) == 3 * ROWS
    key = dataset.key(4)
    assert (folder / f"{key}.jpg").read_bytes() == small_dataset.picture(4)
    assert (folder / f"{key}.txt").read_text() == "picture number 4 of a series"

    def content(name: str) -> list[dict]:
        return [{k: v for k, v in s.items() if k != "__url__"} for s in load(dataset.url, name)]

    assert content("files") == content("tars")
    assert verify(dataset.url, "files").root == verify(dataset.url, "tars").root
    (folder / f"{key}.txt").write_text("another caption")
    (folder / f"{dataset.key(5)}.jpg").unlink()
    problems = verify(dataset.url, "files").problems
    assert [dataset.key(i) in said for i, said in zip((4, 5), sorted(problems), strict=True)]


def test_many_single_files_are_refused(dataset, monkeypatch):
    monkeypatch.setattr("laionkit.stages.subset.choosing.MAX_FILES", 10)
    with pytest.raises(ConfigError, match=r"up to 10 pictures and 25 are left: use --as shards"):
        run(dataset, "files", as_="files")
    assert not (dataset.path / "subsets/files").exists()
