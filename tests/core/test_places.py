"""Places are noted as a walk through the tar finds them, and count for that tar alone."""

import tarfile

import pyarrow as pa
import pytest

from laionkit.core.files import Folder
from laionkit.core.places import noted_places, still_hold
from laionkit.core.shards import list_shards
from laionkit.core.tars import IMAGES_SCHEMA, read_images
from laionkit.stages.adopt import adopt
from tests.small_dataset import SmallDataset, laion_rows, picture


@pytest.fixture
def dataset(tmp_path) -> Folder:
    return SmallDataset(tmp_path / "d", laion_rows(5)).write_shards({2: "timeout"}).folder


def check_notes(dataset: Folder) -> None:
    """Every shard has a note, which says what a walk through its tar finds."""
    for ref in list_shards(dataset):
        noted = noted_places(dataset, ref)
        with dataset.open(ref.tar) as file:
            assert noted.equals(read_images(file)[0])
        assert still_hold(dataset, ref, noted)


def test_adopted_tars_have_notes(dataset, tmp_path):
    adopt(f"{dataset}/shards", str(tmp_path / "adopted"))
    check_notes(Folder(tmp_path / "adopted"))


def test_copied_pictures_have_notes(tmp_path):
    (tmp_path / "album").mkdir()
    for i in range(3):
        (tmp_path / f"album/{i}.jpg").write_bytes(picture(i))
    (tmp_path / "album/1.txt").write_text("a caption")
    adopt(str(tmp_path / "album"), str(tmp_path / "d"))
    check_notes(Folder(tmp_path / "d"))


@pytest.mark.parametrize("name", ["long" * 30, "ordinary"])
def test_a_tar_of_other_than_plain_files_has_no_note(tmp_path, name):
    (tmp_path / "web").mkdir()
    (tmp_path / "a.jpg").write_bytes(picture(0))
    with tarfile.open(tmp_path / "web/00000.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(tmp_path / "a.jpg", f"{name}.jpg")
    adopt(str(tmp_path / "web"), str(tmp_path / "d"))
    (ref,) = list_shards(Folder(tmp_path / "d"))
    assert (noted_places(Folder(tmp_path / "d"), ref) is None) == (name != "ordinary")


def test_another_tar_of_the_same_size_is_told_apart(dataset):
    (ref,) = list_shards(dataset)
    path = dataset.local_path(ref.tar)
    noted = noted_places(dataset, ref)
    whole = path.read_bytes()
    key = noted["key"][1].as_py().encode()
    path.write_bytes(whole.replace(key, key[:-1] + b"9"))
    assert not still_hold(dataset, ref, noted)
    path.write_bytes(whole[:-1])
    assert not still_hold(dataset, ref, noted)
    path.unlink()
    assert not still_hold(dataset, ref, noted)


def test_an_empty_tar_holds_no_places(tmp_path):
    lost = dict.fromkeys(range(3), "timeout")
    dataset = SmallDataset(tmp_path / "d", laion_rows(3)).write_shards(lost).folder
    (ref,) = list_shards(dataset)
    assert noted_places(dataset, ref).equals(pa.Table.from_pylist([], IMAGES_SCHEMA))
    assert still_hold(dataset, ref, noted_places(dataset, ref))
