"""A folder of pictures as a source: captions from sidecars and files, what a rerun takes."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from laionkit.core.files import Folder
from laionkit.core.runner import StageReport
from laionkit.core.worklist import WorkList
from laionkit.stages.metadata import MetadataConfig, inspect, metadata


def make(source: object, dataset: Path) -> StageReport:
    return metadata([str(source)], str(dataset), MetadataConfig(shard_size=10))


def kept(dataset: Path) -> pa.Table:
    with WorkList.open(Folder(dataset)) as work:
        return pa.concat_tables([work.read(shard) for shard in work.shards()])


def captions(dataset: Path) -> list[tuple[str, str | None]]:
    table = kept(dataset)
    names = [Path(path).name for path in table["path"].to_pylist()]
    return list(zip(names, table["caption"].to_pylist(), strict=True))


def draw(path: Path, description: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if description is not None:
        exif[0x010E] = description
    Image.new("RGB", (8, 8)).save(path, exif=exif)


def test_paths_are_kept_and_sidecars_go_before_what_the_picture_carries(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("a.png", "b.jpg", "deep/c.JPEG", "d.jpg", "e.jpg", ".hidden.jpg", ".cache/f.jpg"):
        draw(folder / name, "carried")
    (folder / "a.txt").write_bytes("ein Café\n".encode("latin-1"))
    (folder / "b.json").write_text('{"caption": "a blue square"}')
    (folder / "d.json").write_text('{"width": 8}')
    (folder / "e.txt").write_text("")
    (folder / "g.jpg").write_bytes(b"no picture")
    make(folder, tmp_path / "d")
    assert captions(tmp_path / "d") == [
        ("a.png", "ein Café"),
        ("b.jpg", "a blue square"),
        ("d.jpg", "carried"),
        ("c.JPEG", "carried"),
        ("e.jpg", None),
        ("g.jpg", None),
    ]
    assert "url" not in kept(tmp_path / "d").column_names
    assert inspect([str(folder)]).sources[0].rows == 6


def test_a_sidecar_that_is_no_json_and_a_name_that_is_no_text_are_rows_of_the_ledger(tmp_path):
    folder = tmp_path / "pictures"
    draw(folder / "a.jpg")
    draw(folder / "b.jpg")
    (folder / "b.json").write_text("[" * 100_000)
    os.rename(folder / "a.jpg", os.fsencode(folder) + b"/\xff.jpg")  # noqa: PTH104 (no text)
    draw(folder / "c.jpg")
    report = make(folder, tmp_path / "d")
    assert captions(tmp_path / "d") == [("c.jpg", None)]
    assert report.counts.reasons == {"malformed_row": 2}
    lost = pq.read_table(tmp_path / "d/metadata/dropped.parquet").to_pylist()
    assert [row["row"] for row in lost] == [0, 2]
    assert "b.json is not valid JSON" in lost[0]["value"]
    assert "its name is not UTF-8: rename it" in lost[1]["value"]


def test_a_rerun_takes_only_what_changed(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        draw(folder / name)
    (folder / "c.txt").write_text("first words")
    make(folder, tmp_path / "d")
    before = (tmp_path / "d/metadata/part-00000.parquet").read_bytes()
    assert make(folder, tmp_path / "d").skipped == 1
    draw(folder / "b.jpg", "changed")
    draw(folder / "d.jpg")
    (folder / "c.txt").write_text("second thoughts")
    make(folder, tmp_path / "d")
    assert captions(tmp_path / "d") == [
        ("a.jpg", None),
        ("b.jpg", None),
        ("c.jpg", "first words"),
        ("b.jpg", "changed"),
        ("c.jpg", "second thoughts"),
        ("d.jpg", None),
    ]
    assert (tmp_path / "d/metadata/part-00000.parquet").read_bytes() == before
