"""A folder of pictures as a source: captions from sidecars and files, what a rerun takes."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laionkit.core.errors import InputError, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.runner import Runner, StageReport
from laionkit.core.status import status
from laionkit.core.table import table
from laionkit.core.worklist import WorkList
from laionkit.stages.forget import ForgetConfig, forget
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


def seen_by_later_stages(dataset: Path) -> list[tuple[str, str | None]]:
    """What filters, subsets and indexes may have, in order of keys."""
    found = table(str(dataset)).order("key").fetchall()
    return [(Path(path).name, caption) for _, path, caption, *_ in found]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three pictures, read once into the dataset ``d`` beside them."""
    folder = tmp_path / "pictures"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        draw(folder / name)
    (folder / "c.txt").write_text("first words")
    make(folder, tmp_path / "d")
    return folder


def test_a_rerun_takes_only_what_changed(album, tmp_path):
    before = (tmp_path / "d/metadata/part-00000.parquet").read_bytes()
    again = make(album, tmp_path / "d")
    assert (again.skipped, again.notes) == (1, ("pictures: 3 unchanged, 0 new, 0 changed",))
    draw(album / "b.jpg", "changed")
    draw(album / "d.jpg")
    (album / "c.txt").write_text("second thoughts")
    report = make(album, tmp_path / "d")
    assert report.notes == (
        "pictures: 1 unchanged, 1 new, 2 changed; the rows they had before are superseded",
    )
    assert report.counts == Counts.of(4, {"superseded": 2})
    assert status(str(tmp_path / "d"))[0].counts == report.counts
    assert captions(tmp_path / "d")[3:] == [
        ("b.jpg", "changed"),
        ("c.jpg", "second thoughts"),
        ("d.jpg", None),
    ]
    assert seen_by_later_stages(tmp_path / "d") == [
        ("a.jpg", None),
        ("b.jpg", "changed"),
        ("c.jpg", "second thoughts"),
        ("d.jpg", None),
    ]
    assert (tmp_path / "d/metadata/part-00000.parquet").read_bytes() == before
    assert make(album, tmp_path / "d").skipped == 2


def test_a_picture_that_changes_back_is_there_as_it_is_now(album, tmp_path):
    old, times = (album / "b.jpg").read_bytes(), (album / "b.jpg").stat()
    draw(album / "b.jpg", "changed")
    make(album, tmp_path / "d")
    (album / "b.jpg").write_bytes(old)
    os.utime(album / "b.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    report = make(album, tmp_path / "d")
    assert report.counts == Counts.of(3, {"superseded": 2})
    assert ("b.jpg", None) in seen_by_later_stages(tmp_path / "d")
    assert len(seen_by_later_stages(tmp_path / "d")) == 3


def test_a_picture_that_is_dropped_is_dropped_once(album, tmp_path):
    (album / "b.json").write_text("{no json")
    assert make(album, tmp_path / "e").counts == Counts.of(2, {"malformed_row": 1})
    draw(album / "d.jpg")
    assert make(album, tmp_path / "e").counts == Counts.of(3, {"malformed_row": 1})
    (album / "a.json").write_text("{no json")
    report = make(album, tmp_path / "e")
    assert report.counts == Counts.of(2, {"malformed_row": 2, "superseded": 1})
    assert [name for name, _ in seen_by_later_stages(tmp_path / "e")] == ["c.jpg", "d.jpg"]


def test_what_was_taken_down_stays_so_when_its_file_changes(album, tmp_path):
    where = ForgetConfig(where="path LIKE '%/b.jpg'")
    forget(str(tmp_path / "d"), where, runner=Runner(yes=True))
    draw(album / "b.jpg", "changed")
    report = make(album, tmp_path / "d")
    assert report.notes[0].endswith("1 changed ones were taken down before and stay so")
    draw(album / "b.jpg", "changed again")
    draw(album / "d.jpg")
    make(album, tmp_path / "d")
    assert [name for name, _ in seen_by_later_stages(tmp_path / "d")] == ["a.jpg", "c.jpg", "d.jpg"]


def test_a_picture_that_is_gone_is_said_and_its_row_stays(album, tmp_path):
    (album / "b.jpg").unlink()
    report = make(album, tmp_path / "d")
    assert "1 are no longer in the folder; their rows stay" in report.notes[0]
    assert len(seen_by_later_stages(tmp_path / "d")) == 3
    assert [path.name for path in (tmp_path / "d/metadata").glob("part-*")] == [
        "part-00000.parquet"
    ]


def test_a_rerun_that_is_cut_off_supersedes_nothing(album, tmp_path):
    records = tmp_path / "d/.laionkit/metadata"
    draw(album / "b.jpg", "changed")
    make(album, tmp_path / "d")
    whole = seen_by_later_stages(tmp_path / "d")
    (records / "part-00001.json").unlink()  # cut off just before its record was written
    (album / "b.jpg").unlink()
    make(album, tmp_path / "d")
    assert sorted(path.name for path in records.glob("*.parquet")) == ["pictures-00000.parquet"]
    assert len(seen_by_later_stages(tmp_path / "d")) == 3
    draw(album / "b.jpg", "changed")
    assert make(album, tmp_path / "d").counts == Counts.of(3, {"superseded": 1})
    assert seen_by_later_stages(tmp_path / "d") == whole


def test_starting_over_keeps_nothing_of_what_was_superseded(album, tmp_path):
    draw(album / "b.jpg", "changed")
    make(album, tmp_path / "d")
    config = MetadataConfig(shard_size=10)
    metadata([str(album)], str(tmp_path / "d"), config, runner=Runner(fresh=True, yes=True))
    assert [name for name, _ in seen_by_later_stages(tmp_path / "d")] == ["a.jpg", "b.jpg", "c.jpg"]


def test_links_and_a_second_folder_can_be_added_to_pictures(album, tmp_path):
    links = tmp_path / "links.csv"
    links.write_text("url,caption\nhttp://a.example/1.jpg,one\n")
    draw(tmp_path / "more/e.jpg")
    more = MetadataConfig(shard_size=10, append=True)
    with pytest.raises(StaleOutput, match="Add it as new shards: --append"):
        make(tmp_path / "more", tmp_path / "d")
    metadata([str(tmp_path / "more"), str(links)], str(tmp_path / "d"), more)
    draw(album / "a.jpg", "changed")
    assert make(album, tmp_path / "d").counts == Counts.of(5, {"superseded": 1})
    draw(tmp_path / "more/f.jpg")
    report = metadata([str(links), str(tmp_path / "more")], str(tmp_path / "d"), more)
    assert report.counts == Counts.of(6, {"superseded": 1, "duplicate": 1})


def test_a_folder_of_pictures_with_a_table_in_it_is_ambiguous(tmp_path):
    album = tmp_path / "album"
    for number in range(10):
        draw(album / f"{number}.jpg")
    (album / "links.csv").write_text("url\nhttp://a.example/1.jpg\n")
    with pytest.raises(InputError, match=r"10 pictures and a table, links\.csv: name"):
        make(album, tmp_path / "d")
    (album / "9.jpg").unlink()
    assert make(album, tmp_path / "d").counts.ok == 1  # a few pictures beside tables are no album
