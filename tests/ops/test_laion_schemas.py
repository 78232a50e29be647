"""Each published set is told from its columns, its traps repaired; the golden rows are our own."""

import mmh3
import pyarrow as pa
import pytest

from laionkit.core.errors import ConfigError, InputError
from laionkit.ops.laion_schemas import Reading, detect
from laionkit.ops.link_rows import canonical, output_type, repair, with_hash

URL, TEXT = ["http://a.example/1.jpg", "http://a.example/2.jpg"], ["a cat", "a dog"]
BASE = {"URL": URL, "TEXT": TEXT}
SIZES = {"HEIGHT": pa.array([10, 20], pa.int32()), "WIDTH": pa.array([30, 40], pa.int32())}
RAW = {
    "SAMPLE_ID": pa.array([1, 2]), **BASE, **SIZES, "LICENSE": ["?", "?"],
    "NSFW": ["UNLIKELY", "UNSURE"], "similarity": [0.31, 0.32],
}  # fmt: skip
SAFETY = {"hash": pa.array([-5, 7]), "pwatermark": [0.1, None], "punsafe": [None, 0.2]}
JOINED = {**BASE, **SIZES, "similarity": [0.31, 0.32], **SAFETY}
FETCHED = {
    "key": ["000", "001"], "status": ["success"] * 2, "width": [256, 256], "height": [256, 256],
    "original_width": [640, 641], "original_height": [480, 481], "exif": ["{}", "{}"],
    "md5": ["x", "y"],
}  # fmt: skip
IMPROVED = {
    **BASE, "WIDTH": [30.0, 40.0], "HEIGHT": [10.0, None], "similarity": [0.3, 0.3],
    "punsafe": [0.1, 0.1], "pwatermark": [0.1, 0.1], "AESTHETIC_SCORE": [6.1, 6.2],
    "hash": [1, 2], "__index_level_0__": [0, 1],
}  # fmt: skip
DATACOMP = {
    "uid": ["0" * 32, "1" * 32], "url": URL, "text": TEXT, "original_width": [640, 641],
    "original_height": [480, 481], "clip_b32_similarity_score": [0.2, 0.3],
    "clip_l14_similarity_score": [0.2, 0.3], "face_bboxes": [[[0.1, 0.2]], []],
    "sha256": ["a", "b"],
}  # fmt: skip
SETS = {
    "laion-raw": (RAW, {"width_published": [10, 20], "height_published": [30, 40]}),
    "laion2b-multi": (
        {**RAW, "LANGUAGE": ["de", "fr"]},
        {"width_published": [10, 20], "language": ["de", "fr"]},
    ),
    "laion-joined": (
        JOINED,
        {"width_published": [30, 40], "hash": [-5, 7], "punsafe": [None, 0.2]},
    ),
    "laion-aesthetic-v1": (
        {**JOINED, "aesthetic": [7.1, 8.2]},
        {"aesthetic_v1_published": [7.1, 8.2]},
    ),
    "improved-aesthetics": (
        IMPROVED,
        {
            "aesthetic_v2_published": [6.1, 6.2],
            "width_published": [30, 40],
            "height_published": [10, None],
            "__index_level_0__": [0, 1],
        },
    ),
    "laion-coco": (
        {**BASE, "top_caption": ["a", "b"], "all_captions": [["a"], ["b"]],
         "all_similarities": [[0.1], [0.2]]},
        {"caption": TEXT, "top_caption": ["a", "b"], "all_similarities": [[0.1], [0.2]]},
    ),
    "laion5b-embeddings": (
        {"image_path": ["0", "1"], "caption": TEXT, "NSFW": ["UNLIKELY"] * 2,
         "similarity": [0.3, 0.3], "LICENSE": ["?"] * 2, "url": URL, **FETCHED},
        {"width_published": [640, 641], "src_width": [256, 256], "src_key": ["000", "001"]},
    ),
    "re-laion": (
        {"url": URL, "caption": TEXT, "similarity": [0.3, 0.3], **SAFETY, **FETCHED,
         "error_message": [None, None]},
        {"width_published": [640, 641], "src_status": ["success"] * 2, "hash": [-5, 7]},
    ),
    "datacomp": (
        DATACOMP,
        {"width_published": [640, 641], "uid": DATACOMP["uid"], "src_sha256": ["a", "b"]},
    ),
}  # fmt: skip


def read(columns: dict, **chosen: str) -> tuple[Reading, pa.Table]:
    table = pa.table(columns)
    reading = detect(table.schema, table, "x.parquet", **chosen)
    kinds = {
        ours: output_type(ours, table.schema.field(theirs).type)
        for ours, theirs in reading.columns.items()
    }
    kinds.setdefault("hash", pa.int64())
    return reading, with_hash(canonical(table, reading, pa.schema(list(kinds.items()))), reading)


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_told_and_its_columns_are_canonical(name):
    columns, expected = SETS[name]
    reading, rows = read(columns)
    assert reading.set_name == name
    assert rows["url"].to_pylist() == URL
    assert rows["caption"].to_pylist() == TEXT
    found = {column: rows[column].to_pylist() for column in expected}
    assert found == expected
    assert len(rows.column_names) == len(columns) + (0 if "hash" in columns else 1)


@pytest.mark.parametrize("name", ["laion-raw", "laion2b-multi"])
def test_swapped_sides_are_swapped_back_and_reported(name):
    reading, _ = read(SETS[name][0])
    assert any("swapped" in note for note in reading.notes)
    assert not any("swapped" in note for note in read(JOINED)[0].notes)


def test_case_does_not_matter():
    lower = {name.lower(): column for name, column in JOINED.items()}
    assert read(lower)[0].set_name == "laion-joined"


def test_an_aesthetic_column_of_unknown_version_says_so():
    rows = read({**JOINED, "aesthetic": [5.1, 8.2]})[1]
    assert rows["aesthetic_published"].to_pylist() == [5.1, 8.2]


def test_the_hash_is_laions():
    rows = read({"url": [*URL, None], "text": ["a", None, "c"]})[1]
    expected = [mmh3.hash64(URL[0] + "a")[0], mmh3.hash64(URL[1])[0], None]
    assert rows["hash"].to_pylist() == expected


def test_columns_are_found_by_content_where_names_do_not_tell():
    rows = read({"a": URL, "b": TEXT, "c": [1, 2]})[1]
    assert rows["url"].to_pylist() == URL
    assert rows["caption"].to_pylist() == TEXT


def test_a_column_that_would_collide_gets_src():
    columns = {**BASE, "Status": [1, 2], "clip_similarity": [0.1, 0.2], "match": [0, 1]}
    reading, _ = read(columns)
    assert {"src_Status", "src_clip_similarity", "src_match"} <= set(reading.columns)


def test_a_set_can_be_forced_and_must_fit():
    forced = read(SETS["laion-raw"][0], forced="generic")
    assert forced[1]["width_published"].to_pylist() == [30, 40]
    with pytest.raises(InputError, match=r"is no datacomp: it lacks .*uid"):
        read(BASE, forced="datacomp")
    with pytest.raises(ConfigError, match=r"no such set \(did you mean datacomp"):
        read(BASE, forced="datacamp")


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", " 2 ", "x", None, "3.0"], pa.int32(), [1, 2, None, None, 3]),
        (["1.5", "+2e1", "nan", ""], pa.float64(), [1.5, 20.0, None, None]),
        ([1.4, 2.5, float("nan"), float("inf")], pa.int32(), [1, 2, None, None]),
        ([1, 2**40, -(2**40)], pa.int32(), [1, None, None]),
        ([2**63 - 1, -(2**63)], pa.int64(), [2**63 - 1, -(2**63)]),
        (["9223372036854775807", "1e30"], pa.int64(), [9223372036854775807, None]),
        ([b"ab", b"\xff"], pa.string(), ["ab", "\ufffd"]),
        ([1, None], pa.string(), ["1", None]),
    ],
)
def test_a_value_that_does_not_fit_becomes_null(values, kind, expected):
    column = pa.chunked_array([pa.array(values)])
    assert repair(column, kind).to_pylist() == expected
