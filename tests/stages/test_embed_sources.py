"""embed reads whatever adopt takes: tars of any kind, folders of files, parquet with pictures."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laionkit.backends.clip import load_model
from laionkit.core.embeddings import list_embeddings
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.runner import Runner
from laionkit.core.shards import list_shards
from laionkit.ops.vectors import unit_rows
from laionkit.stages.adopt import adopt
from laionkit.stages.embed import EmbedConfig, embed
from tests.small_dataset import SmallDataset, laion_rows
from tests.stages.shards import picture

CPU = Runner(device="cpu")


def embedded(source, dataset, small_clip):
    """Adopt and embed; key → (unit row, caption), and the report."""
    adopt(str(source), str(dataset))
    config = EmbedConfig(model=f"local-dir:{small_clip}", precision="fp32", as_name="m")
    report = embed(str(dataset), config, runner=CPU)
    folder, rows = Folder(dataset), {}
    for ref in list_embeddings(folder, "m"):
        table = folder.read_table(ref.metadata)
        unit_ND = unit_rows(np.load(io.BytesIO(folder.read_bytes(ref.image))))
        captions = table["caption"].to_pylist()
        for row, key in enumerate(table["image_path"].to_pylist()):
            rows[key] = unit_ND[row], captions[row]
    return rows, report


def expected(small_clip, *pictures):
    model = load_model(f"local-dir:{small_clip}", device="cpu", precision="fp32")
    return model.encode_images(
        [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures]
    )


def test_any_order_of_members_and_any_width_of_keys(tmp_path, small_clip):
    """Pictures of three kinds, their captions and JSON, scattered through two tars."""
    samples = {
        "7": ("jpg", picture(0)),
        "0012": ("webp", picture(1, kind="WEBP")),
        "00000000000000345": ("png", picture(2, kind="PNG")),
        "dir/a-b_c": ("jpeg", picture(3)),
    }
    members = [(f"{key}.{ext}", data) for key, (ext, data) in samples.items()]
    members += [(f"{key}.txt", f"caption of {key}".encode()) for key in reversed(samples)]
    members += [("7.json", b"{}"), ("7.cls", b"3")]
    for name, part in (("a", members[::2]), ("b", members[1::2])):
        home = tmp_path / name
        home.mkdir()
        with tarfile.open(home / "part.tar", "w") as tar:
            for member, data in part:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / "a/part.tar", "a") as tar:
        for member, data in members[1::2]:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows, report = embedded(tmp_path / "a", tmp_path / "d", small_clip)
    assert report.counts.ok == 4
    theirs = expected(small_clip, *(data for _, data in samples.values()))
    for key, row in zip(samples, theirs, strict=True):
        assert rows[key][0] @ row > 0.9999
        assert rows[key][1] == f"caption of {key}"


def test_shards_of_img2dataset(tmp_path, small_clip):
    source = SmallDataset(tmp_path / "run", laion_rows(12)).write_shards({3: "timeout"})
    rows, report = embedded(source.path / "shards", tmp_path / "d", small_clip)
    assert report.counts.ok == len(rows) == 11
    assert rows[source.key(0)][1] == "picture number 0 of a series"
    assert source.key(3) not in rows


def test_a_folder_of_files(tmp_path, small_clip):
    photos = tmp_path / "photos"
    (photos / "trip.2024").mkdir(parents=True)
    for name, data in {
        "cat.jpg": picture(0), "cat.txt": b"a cat\n",
        "dog.JPG": picture(1),
        "dog.png": picture(2, kind="PNG"),
        "trip.2024/sea.webp": picture(3, kind="WEBP"), "trip.2024/sea.txt": b"the s\xe9a",
        "trip.2024/sea.json": b'{"caption": "no", "url": "u", "similarity": 0.3, "width": 5}',
        "page.json": b"{", "page.jpg": b"<html>",
        "loop.jpg": picture(4, kind="GIF"), "notes.md": b"nothing",
    }.items():  # fmt: skip
        (photos / name).write_bytes(data)
    rows, report = embedded(photos, tmp_path / "d", small_clip)
    assert {key: caption for key, (_, caption) in rows.items()} == {
        "cat": "a cat",
        "dog_JPG": None,
        "dog_png": None,
        "trip_2024/sea": "the s\ufffda",
    }
    theirs = expected(small_clip, picture(0), picture(3, kind="WEBP"))
    assert rows["cat"][0] @ theirs[0] > 0.9999
    assert rows["trip_2024/sea"][0] @ theirs[1] > 0.9999
    (shard,) = list_shards(Folder(tmp_path / "d"))
    table = Folder(tmp_path / "d").read_table(shard.table).to_pylist()
    lost = {row["key"]: row["reason"] for row in table if row["status"] != "success"}
    assert lost == {"page": "not_an_image", "loop": "format_refused"}
    said = {row["key"]: (row["url"], row["similarity"], row["width"]) for row in table}
    assert said["trip_2024/sea"] == ("u", 0.3, 90)
    assert said["cat"] == (None, None, 90)
    assert report.counts.ok == 4
    assert adopt(str(photos), str(tmp_path / "d")).skipped == 1


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_parquet_with_the_bytes_of_pictures(kind, tmp_path, small_clip):
    data = [picture(i) for i in range(40)]
    images = pa.array([{"bytes": d, "path": "x"} for d in data] if kind == "struct" else data)
    captions = [f"picture {i}" for i in range(40)]
    home = tmp_path / "rows"
    home.mkdir()
    table = pa.table({"image": images, "text": captions})
    pq.write_table(table, home / "train-00000-of-00001.parquet", row_group_size=7)
    rows, report = embedded(home, tmp_path / "d", small_clip)
    assert report.counts.ok == 40
    assert [caption for _, caption in rows.values()] == captions
    theirs = expected(small_clip, *data)
    assert np.einsum("nd,nd->n", np.stack([row for row, _ in rows.values()]), theirs).min() > 0.9999


def test_parquet_with_keys_of_its_own_and_rows_without_a_picture(tmp_path, small_clip):
    home = tmp_path / "rows"
    home.mkdir()
    columns = {
        "uid": ["c", "a", "b"],
        "jpg": [picture(0), None, picture(1)],
        "URL": ["u", "v", "w"],
        "TEXT": ["one", None, "three"],
        "AESTHETIC_SCORE": pa.array([5.5, 6.5, None], pa.float32()),
        "hash": [1, 2, 3],
        "thumb": [b"x", b"y", b"z"],
        "boxes": [[1], [], None],
    }
    pq.write_table(pa.table(columns), home / "part.parquet")
    rows, _ = embedded(home, tmp_path / "d", small_clip)
    assert {key: caption for key, (_, caption) in rows.items()} == {"b": "three", "c": "one"}
    (shard,) = list_shards(Folder(tmp_path / "d"))
    table = Folder(tmp_path / "d").read_table(shard.table).to_pylist()
    assert {row["key"]: (row["url"], row["reason"], row["hash"], row["uid"]) for row in table} == {
        "a": ("v", "file_missing", 2, "a"),
        "b": ("w", None, 3, "b"),
        "c": ("u", None, 1, "c"),
    }
    assert {row["aesthetic_published"] for row in table} == {5.5, 6.5, None}
    assert not {"thumb", "boxes", "jpg"} & set(table[0])


def test_a_key_in_two_sources_names_both(tmp_path, small_clip):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cat.jpg").write_bytes(picture(0))
    adopt(str(tmp_path / "one"), str(tmp_path / "d"))
    with pytest.raises(InputError, match=r"two-00000.*one-00000.*both hold key 'cat'"):
        adopt(str(tmp_path / "two"), str(tmp_path / "d"))
    assert len(list_shards(Folder(tmp_path / "d"))) == 1
    assert Folder(tmp_path / "d").names("shards", ".tar") == ["one-00000.tar"]
