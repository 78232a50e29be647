"""Files appear whole or not at all, on disk and elsewhere."""

import uuid

import pyarrow as pa
import pytest

from laionkit.core.errors import InputError
from laionkit.core.files import Folder


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return Folder(tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_what_is_written_is_read_and_hashed(folder):
    written = folder.write_bytes("a/b.bin", b"abc")
    assert folder.read_bytes("a/b.bin") == b"abc"
    assert (written.path, written.size, written.sha256[:8]) == ("a/b.bin", 3, "ba7816bf")


def test_a_failed_write_leaves_what_was_there(folder):
    folder.write_bytes("x", b"old")
    with pytest.raises(ValueError, match="half way"), folder.create("x") as file:
        file.write(b"new")
        raise ValueError("half way")
    assert folder.read_bytes("x") == b"old"
    assert folder.names() == ["x"]


def test_tables_and_json_round_trip(folder):
    table = pa.table({"key": ["a", "b"], "n": [1, 2]})
    folder.write_table("t.parquet", table)
    folder.write_json("j.json", {"ä": [1, None]})
    assert folder.read_table("t.parquet").equals(table)
    assert folder.read_table("t.parquet", ["n"]).column_names == ["n"]
    assert folder.read_json("j.json") == {"ä": [1, None]}


def test_equal_tables_give_equal_bytes(folder):
    table = pa.table({"key": [f"{i:09d}" for i in range(1000)]})
    assert folder.write_table("1", table).sha256 == folder.write_table("2", table).sha256


def test_names_are_sorted_and_folders_apart(folder):
    for name in ("s/b.json", "s/a.json", "s/c.txt", "s/deep/d.json"):
        folder.write_bytes(name, b"1")
    assert folder.names("s", ".json") == ["a.json", "b.json"]
    assert folder.folders("s") == ["deep"]
    assert folder.names("nowhere") == [] == folder.folders("nowhere")


@pytest.mark.parametrize("name", ["no.parquet", "no.json"])
def test_a_missing_file_is_an_input_error_that_names_it(folder, name):
    read = folder.read_table if name.endswith("parquet") else folder.read_json
    with pytest.raises(InputError, match=name):
        read(name)


def test_files_that_are_not_what_they_say_are_input_errors(folder):
    folder.write_bytes("x", b"\x00 not json, not parquet")
    with pytest.raises(InputError, match="not valid JSON"):
        folder.read_json("x")
    with pytest.raises(InputError, match="not readable parquet"):
        folder.read_table("x")


def test_an_absolute_path_names_a_file_outside(tmp_path):
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"1")
    assert Folder(tmp_path / "dataset").read_bytes(str(outside)) == b"1"
