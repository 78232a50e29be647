"""Each published set, whole through the stage, with the traps its makers left in it."""

from pathlib import Path
from typing import Any

import mmh3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.core.runner import StageReport
from laionkit.stages.metadata import MetadataConfig, inspect, metadata
from tests.ops.test_laion_schemas import RAW, SETS, TEXT, URL


def make(columns: dict[str, Any], folder: Path, **chosen: Any) -> tuple[StageReport, pa.Table]:
    pq.write_table(pa.table(columns), folder / "links.parquet")
    report = metadata([str(folder / "links.parquet")], str(folder / "d"), MetadataConfig(**chosen))
    return report, pq.read_table(folder / "d/metadata/part-00000.parquet")


@pytest.mark.parametrize("case", ["as published", "other case"])
@pytest.mark.parametrize("name", SETS)
def test_each_set_comes_out_canonical(tmp_path, name, case):
    columns, expected = SETS[name]
    if case == "other case":
        columns = {column.swapcase(): values for column, values in columns.items()}
        expected = {column: values for column, values in expected.items() if "src_" not in column}
    _, rows = make(columns, tmp_path)
    assert rows["url"].to_pylist() == URL
    assert rows["caption"].to_pylist() == TEXT
    hashes = expected.get("hash") or [
        mmh3.hash64(url + text)[0] for url, text in zip(URL, TEXT, strict=True)
    ]
    if "hash" not in {column.lower() for column in columns}:
        assert rows["hash"].to_pylist() == hashes
    lower = {column.lower(): column for column in rows.column_names}
    found = {column: rows[lower[column.lower()]].to_pylist() for column in expected}
    assert found == expected
    assert len(lower) == rows.num_columns
    record = StageRecords(Folder(tmp_path / "d"), "metadata").read("part-00000")
    assert record.extra["sets"] == [name]


@pytest.mark.parametrize("schema", ["auto", "laion-raw"])
def test_the_dirt_of_laion_400m_is_in_the_ledger_and_its_sides_are_swapped_back(tmp_path, schema):
    columns = {
        "SAMPLE_ID": pa.array([1.0, 2.0, None, 4.0, 5.0]),
        "URL": [URL[0], "http://a.example/2", "a caption that slipped into the link", None, URL[1]],
        "TEXT": ["a cat", "shifted", "http://a.example/3", "x", "a" * 61_192],
        "HEIGHT": pa.array([30, 1, 2, 3, 40], pa.int32()),
        "WIDTH": pa.array([10, 1, 2, 3, 20], pa.int32()),
        "LICENSE": ["?", None, "?", "?", "?"],
        "NSFW": ["UNLIKELY", "UNSURE", "NSFW", None, "UNLIKELY"],
        "similarity": [0.31, 6016.0, 0.3, 0.3, None],
    }
    assert {name.lower() for name in columns} == {name.lower() for name in RAW}
    report, rows = make(columns, tmp_path, links_schema=schema)
    assert report.counts.reasons == {"malformed_row": 1, "malformed_url": 1, "missing_url": 1}
    dropped = pq.read_table(tmp_path / "d/metadata/dropped.parquet").to_pylist()
    assert [(row["row"], row["reason"], row["value"]) for row in dropped] == [
        (1, "malformed_row", "similarity=6016.0"),
        (2, "malformed_url", None),
        (3, "missing_url", None),
    ]
    assert rows["width_published"].to_pylist() == [30, 40]
    assert rows["height_published"].to_pylist() == [10, 20]
    assert len(rows["caption"][1].as_py()) == 61_192
    assert any("swapped back" in note for note in report.notes)
    assert any("NSFW string is unreliable" in note for note in report.notes)
    look = inspect([str(tmp_path / "links.parquet")]).sources[0]
    assert look.set_name == "laion-raw"
    assert any("swapped back" in note for note in look.notes)
