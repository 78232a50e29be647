"""score --import: columns made elsewhere, declared as such."""

import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from laionkit.core.embeddings import score_columns, score_files
from laionkit.core.errors import InputError, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.shards import ShardWriter
from laionkit.stages.adopt import adopt
from laionkit.stages.score import ScoreConfig, score
from tests.stages.shards import picture, shard_of, write_shards


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "data", {f"{n:05d}": shard_of(n, 3) for n in range(2)})


def write(path, text):
    path.write_text(text)
    return str(path)


def rows_of(folder, column):
    return [row for f in score_files(folder, column) for row in folder.read_table(f).to_pylist()]


def test_scores_join_on_keys_whose_zeros_stay(folder, tmp_path):
    file = write(tmp_path / "s.csv", "key,Beauty\n000000001,0.5\n000010000,2\n999999999,1\n")
    report = score(folder.url, ScoreConfig(import_file=file))
    assert report.counts == Counts.of(2, {"not_scored": 4})
    assert report.outputs == ("scores/beauty",)
    assert rows_of(folder, "beauty") == [
        {"key": "000000001", "value": 0.5},
        {"key": "000010000", "value": 2.0},
    ]
    assert score_columns(folder)["beauty"].facts["provenance"] == "declared"


def test_another_file_for_the_same_column_is_refused(folder, tmp_path):
    first = write(tmp_path / "a.csv", "key,beauty\n000000001,0.5\n")
    second = write(tmp_path / "b.csv", "key,beauty\n000000001,0.6\n")
    score(folder.url, ScoreConfig(import_file=first))
    assert score(folder.url, ScoreConfig(import_file=first)).skipped == 2
    with pytest.raises(StaleOutput, match=r"file_sha256.*one column never mixes the two"):
        score(folder.url, ScoreConfig(import_file=second))


def test_a_parquet_file_with_several_numbers_needs_a_choice(folder, tmp_path):
    table = pa.table({"key": ["000000001"], "a": [1.0], "b": [None]})
    table = table.set_column(2, "b", pa.array([2], pa.int32()))
    pq.write_table(table, tmp_path / "s.parquet")
    with pytest.raises(InputError, match="name the column of scores with --value: a, b are"):
        score(folder.url, ScoreConfig(import_file=str(tmp_path / "s.parquet")))
    score(folder.url, ScoreConfig(import_file=str(tmp_path / "s.parquet"), value="b"))
    assert rows_of(folder, "b") == [{"key": "000000001", "value": 2.0}]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("on", ["hash", "sha256"])
def test_scores_join_on_what_the_links_or_the_pictures_are(on, kind, tmp_path):
    hashes, sums = [-5, 2**62, 7], [f"{i:064x}" for i in range(3)]
    (tmp_path / "web").mkdir()
    with (
        Folder(tmp_path / "web").create("00000.tar") as file,
        ShardWriter(file) as tar,
    ):
        for i in range(3):
            said = json.dumps({"hash": hashes[i], "sha256": sums[i]}).encode()
            tar.add(f"{i}", {"jpg": picture(i), "json": said})
    adopt(str(tmp_path / "web"), str(tmp_path / "d"))
    given = {"hash": hashes, "sha256": sums}[on]
    table = pa.table({on: given[:2], "v": [0.25, 4]})
    file_of_scores = str(tmp_path / f"s.{kind}")
    (pq.write_table if kind == "parquet" else pyarrow.csv.write_csv)(table, file_of_scores)
    report = score(str(tmp_path / "d"), ScoreConfig(import_file=file_of_scores, on=on))
    assert report.counts == Counts.of(2, {"not_scored": 1})
    assert rows_of(Folder(tmp_path / "d"), "v") == [
        {"key": "0", "value": 0.25},
        {"key": "1", "value": 4.0},
    ]


def test_a_file_of_other_keys_says_so(folder, tmp_path, caplog):
    file = write(tmp_path / "s.csv", "key,beauty\n1,0.5\n")
    assert score(folder.url, ScoreConfig(import_file=file)).counts.ok == 0
    assert "no key of" in caplog.text
    assert "such as '1', is one of" in caplog.text


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("kay,v\nx,1\n", {}, r"no column 'key' to join on \(did you mean kay\?\)"),
        ("key,v\nx,1\nx,2\n", {}, "scores key 'x' twice"),
        ("key,caption\nx,a\n", {}, "name the column of scores"),
        ("key,width\nx,1\n", {}, "a score cannot be called width"),
        ("hash,v\n1,1\n", {"on": "hash"}, "has no column hash to join scores on"),
        ("", {}, "no readable csv"),
    ],
)
def test_a_wrong_file_is_one_line(text, settings, words, folder, tmp_path):
    file = write(tmp_path / "s.csv", text)
    with pytest.raises(InputError, match=words) as caught:
        score(folder.url, ScoreConfig(import_file=file, **settings))
    assert "\n" not in str(caught.value)
