"""adopt: existing shards and embeddings registered in place, checked, never touched."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.embeddings import embedded_models, list_embeddings, model_made
from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.runner import Runner, StageReport
from laionkit.core.shards import list_shards
from laionkit.core.table import DatasetTable
from laionkit.stages.adopt import AdoptConfig, adopt
from laionkit.stages.adopt.shards import require_inside
from laionkit.stages.subset import SubsetConfig, subset
from tests.small_dataset import SmallDataset, laion_rows, picture

OPENAI_B32 = "ViT-B-32-quickgelu/openai"


def take(folder: Path, dataset: Path, **settings: object) -> StageReport:
    return adopt(str(folder), str(dataset), AdoptConfig.build(settings, "adopt"))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_embeddings(folder: Path, name: str, keys: list[str], dim: int = 8, **arrays: object):
    """A set of clip-retrieval's files; `image` and `text` replace what is written there."""
    rng = np.random.default_rng(len(keys))
    emb_ND = rng.normal(size=(len(keys), dim)).astype(np.float32)
    emb_ND /= np.linalg.norm(emb_ND, axis=1, keepdims=True)
    for kind in ("img_emb", "text_emb"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        array = arrays.get("image" if kind == "img_emb" else "text", emb_ND.astype(np.float16))
        np.save(folder / kind / f"{kind}_{name}.npy", array)
    (folder / "metadata").mkdir(exist_ok=True)
    table = pa.table({"image_path": keys, "caption": [f"caption {k}" for k in keys]})
    pq.write_table(table, folder / f"metadata/metadata_{name}.parquet")


def snapshot(folder: Path) -> dict[str, tuple[int, float]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime) for p in folder.rglob("*")}


def test_img2dataset_shards_are_registered_in_place(tmp_path):
    source = SmallDataset(tmp_path / "run", laion_rows(25)).write_shards({3: "timeout"})
    before = snapshot(source.path)
    first, second = (take(source.path / "shards", tmp_path / "d") for _ in range(2))
    assert (first.counts.ok, first.counts.reasons, first.skipped) == (24, {"timeout": 1}, 0)
    assert second.skipped == 3
    refs = list_shards(Folder(tmp_path / "d"))
    assert [ref.name for ref in refs] == ["shards-00000", "shards-00001", "shards-00002"]
    assert refs[0].tar == str(source.path / "shards/00000.tar")
    with DatasetTable(str(tmp_path / "d")) as table:
        assert table.rows == 25
        assert table.execute("SELECT count(*) FROM dataset WHERE reason IS NULL").fetchone() == (
            24,
        )
    assert snapshot(source.path) == before


def test_a_second_folder_of_the_same_name_gets_names_of_its_own(tmp_path):
    for run, prefix in (("a", "1"), ("b", "2")):
        members = {f"{prefix}{i:03d}.jpg": picture(i) for i in range(3)}
        write_tar(tmp_path / run / "shards/00000.tar", members)
        take(tmp_path / run / "shards", tmp_path / "d")
    names = [ref.name for ref in list_shards(Folder(tmp_path / "d"))]
    assert names == ["shards-00000", "shards-2-00000"]
    assert take(tmp_path / "b/shards", tmp_path / "d").skipped == 1


def test_a_tar_without_a_table_gets_one_of_ours(tmp_path):
    said = json.dumps(
        {"caption": "from json", "url": "http://a.example/1", "width": 9, "height": 8}
    )
    write_tar(
        tmp_path / "web/part.tar",
        {
            "b.jpg": picture(1), "b.txt": b"from txt", "b.json": b"{broken",
            "a.json": said.encode(), "a.jpg": picture(0),
            "c.txt": b"no picture",
        },
    )  # fmt: skip
    report = take(tmp_path / "web", tmp_path / "d")
    assert (report.counts.ok, report.counts.reasons) == (2, {"member_missing": 1})
    ref = list_shards(Folder(tmp_path / "d"))[0]
    rows = Folder(tmp_path / "d").read_table(ref.table).to_pylist()
    assert [(r["key"], r["caption"], r["width"]) for r in rows] == [
        ("a", "from json", 9),
        ("b", "from txt", 32),
        ("c", "no picture", None),
    ]
    assert not list((tmp_path / "web").glob("*.parquet"))


def test_a_key_in_two_tars_is_one_line_that_names_both_and_leaves_nothing(tmp_path):
    for name in ("one", "two"):
        write_tar(tmp_path / f"web/{name}.tar", {"same.jpg": picture(0)})
    with pytest.raises(InputError, match=r"one\.tar and .*two\.tar both hold key 'same'"):
        take(tmp_path / "web", tmp_path / "d")
    assert not list_shards(Folder(tmp_path / "d"))
    assert not list((tmp_path / "d").rglob("*.parquet"))
    write_tar(tmp_path / "other/one.tar", {"same.jpg": picture(0)})
    (tmp_path / "web/two.tar").unlink()
    take(tmp_path / "web", tmp_path / "d")
    with pytest.raises(InputError, match="both hold key 'same'"):
        take(tmp_path / "other", tmp_path / "d")
    assert len(list_shards(Folder(tmp_path / "d"))) == 1


@pytest.mark.parametrize("key", ["../a", "a/../../b", "/etc/a", "..\\a", "..", "a\0b"])
def test_a_key_that_leads_out_of_a_folder_is_refused(key):
    require_inside(pa.array(["000010005", "a/b/c", "a..b", "...", None]), "00000.tar")
    with pytest.raises(InputError, match=r"00000\.tar has the key"):
        require_inside(pa.array(["000010005", key]), "00000.tar")


def test_a_tar_that_would_be_unpacked_elsewhere_is_one_line(tmp_path):
    write_tar(tmp_path / "web/00000.tar", {"../../out.jpg": picture(0)})
    with pytest.raises(InputError, match=r"00000\.tar has the key '\.\./\.\./out'"):
        take(tmp_path / "web", tmp_path / "d")
    assert not list_shards(Folder(tmp_path / "d"))


def test_a_member_twice_in_one_tar_is_one_line(tmp_path):
    (tmp_path / "web").mkdir()
    with tarfile.open(tmp_path / "web/00000.tar", "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("same.jpg")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"jpg"))
    with pytest.raises(InputError, match=r"00000\.tar holds 'same\.jpg' twice"):
        take(tmp_path / "web", tmp_path / "d")
    assert not list_shards(Folder(tmp_path / "d"))


def test_a_cut_tar_gives_its_good_samples_names_the_others_and_says_so(tmp_path, caplog):
    path = tmp_path / "web/00000.tar"
    write_tar(path, {f"{name}.jpg": picture(i) for i, name in enumerate("abc")})
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"c.jpg\0") + 700])
    report = take(tmp_path / "web", tmp_path / "d")
    assert report.counts.model_dump() == {"seen": 3, "ok": 2, "reasons": {"corrupt_tar": 1}}
    ref = list_shards(Folder(tmp_path / "d"))[0]
    rows = Folder(tmp_path / "d").read_table(ref.table).to_pylist()
    assert [(row["key"], row["reason"]) for row in rows] == [
        ("a", None),
        ("b", None),
        ("c", "corrupt_tar"),
    ]
    assert "00000.tar is damaged" in caplog.text
    assert "2 whole samples are taken" in caplog.text


@pytest.mark.parametrize(
    "said",
    [
        b'{"key": "other", "status": "failed_to_download", "reason": "?", "width": 1e308}',
        b'{"width": NaN, "height": -5, "original_width": 99999999999999999999999}',
        b'{"caption": {"x": 1}, "url": 7, "Caption": "C", "KEY": 2, "kEy": 3}',
        b'{"": 1, "a\\u0000": 2, "image_path": "p", "IMAGE_PATH": "q"}',
        b'{"tags": ["\\ud800 lone"], "\\udfff": 1, "hash": 18446744073709551616}',
        b"[" * 100_000,
        b"\xff\xfe",
        b"null",
    ],
)
def test_json_that_lies_or_is_none_costs_no_sample(said, tmp_path):
    members = {"a.jpg": picture(0), "a.json": said, "b.jpg": picture(1), "b.json": b'{"n": 1}'}
    write_tar(tmp_path / "web/00000.tar", members)
    report = take(tmp_path / "web", tmp_path / "d")
    assert (report.counts.ok, report.counts.reasons) == (2, {})
    ref = list_shards(Folder(tmp_path / "d"))[0]
    rows = Folder(tmp_path / "d").read_table(ref.table).to_pylist()
    assert [(r["key"], r["status"], r["width"], r["height"], r["n"]) for r in rows] == [
        ("a", "success", 32, 32, None),
        ("b", "success", 32, 32, 1),
    ]
    with DatasetTable(str(tmp_path / "d")) as table:
        assert table.rows == 2


def test_embeddings_are_registered_as_declared(tmp_path):
    write_embeddings(tmp_path / "emb", "0", ["a", "b"])
    write_embeddings(tmp_path / "emb", "1", ["c"])
    before = snapshot(tmp_path / "emb")
    for _ in range(2):
        take(tmp_path / "emb", tmp_path / "d", model=OPENAI_B32)
    home = Folder(tmp_path / "d")
    assert embedded_models(home) == ["ViT-B-32-quickgelu_openai"]
    refs = list_embeddings(home, "ViT-B-32-quickgelu_openai")
    assert [ref.rows for ref in refs] == [2, 1]
    assert refs[0].text == str(tmp_path / "emb/text_emb/text_emb_0.npy")
    facts = model_made(home, "ViT-B-32-quickgelu_openai").facts
    assert facts["backbone"] == "openai/ViT-B-32"
    assert (facts["provenance"], facts["dim"]) == ("declared", 8)
    assert snapshot(tmp_path / "emb") == before
    with pytest.raises(StaleOutput, match="backbone"):
        take(tmp_path / "emb", tmp_path / "d", model=OPENAI_B32, backbone_id="me/mine")


ROWS_OFF = np.eye(3, 8, dtype=np.float16)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": ROWS_OFF}, r"img_emb_0\.npy has 3 rows and .*metadata_0\.parquet has 2"),
        ({"text": ROWS_OFF}, r"text_emb_0\.npy has 3 rows"),
        ({"text": np.eye(2, 4, dtype=np.float16)}, "differ in dimension"),
        ({"image": np.full((2, 8), np.nan, np.float16)}, "row 0 holds values that are no numbers"),
        ({"image": np.eye(2, 8, dtype=np.float32) * 3}, "row 0 has length 3.000, not 1"),
        ({"image": np.eye(2, 8)}, "holds float64"),
        ({"image": np.zeros(2, np.float16)}, "one row a picture"),
    ],
)
def test_embeddings_that_do_not_fit_are_one_line(tmp_path, arrays, message):
    write_embeddings(tmp_path / "emb", "0", ["a", "b"], **arrays)
    with pytest.raises(InputError, match=message) as caught:
        take(tmp_path / "emb", tmp_path / "d", model=OPENAI_B32)
    assert "\n" not in str(caught.value)
    assert not embedded_models(Folder(tmp_path / "d"))


def test_what_cannot_be_adopted_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no tars, no img_emb"):
        take(tmp_path / "empty", tmp_path / "d")
    write_embeddings(tmp_path / "emb", "0", ["a", "b"])
    with pytest.raises(ConfigError, match="which model made them with --model"):
        take(tmp_path / "emb", tmp_path / "d")
    (tmp_path / "emb/metadata/metadata_0.parquet").unlink()
    with pytest.raises(InputError, match=r"has no metadata/metadata_0\.parquet"):
        take(tmp_path / "emb", tmp_path / "d", model=OPENAI_B32)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/00000.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match=r"00000\.tar is no readable tar"):
        take(tmp_path / "bad", tmp_path / "d")


def test_a_real_clip_retrieval_run_is_adopted_with_its_own_keys(tmp_path, real_data):
    run = real_data / "clip/fashion9-clip-retrieval-run"
    report = take(run, tmp_path / "d", model=OPENAI_B32)
    assert report.counts.ok == 9
    with DatasetTable(str(tmp_path / "d")) as table:
        keys = [row[0] for row in table.execute("SELECT key FROM dataset").fetchall()]
    assert "/content/catalog/img1.png" in keys


def test_real_tars_whose_keys_repeat_are_refused(tmp_path, real_data):
    with pytest.raises(InputError, match=r"image1\.tar and .*image3\.tar both hold key '123_456'"):
        take(real_data / "clip/clip-retrieval-vitb32/tars", tmp_path / "d")


def test_a_real_unsorted_shard_without_a_table_is_adopted(tmp_path, real_data):
    report = adopt(
        str(real_data / "images/cc12m-webdataset-shard"), str(tmp_path / "d"), runner=Runner()
    )
    assert report.counts.ok == 32
    ref = list_shards(Folder(tmp_path / "d"))[0]
    table = Folder(tmp_path / "d").read_table(ref.table)
    keys = table["key"].to_pylist()
    assert keys == sorted(keys)
    assert table["original_width"].null_count == 0


def write_raw_shard(folder: Path, **columns: list) -> None:
    """A shard as img2dataset writes it of a set whose columns have their published names."""
    keys = [f"{i:09d}" for i in range(4)]
    write_tar(folder / "00000.tar", {f"{key}.jpg": picture(i) for i, key in enumerate(keys)})
    table = pa.table({
        "url": [f"http://a.example/{i}" for i in range(4)], "caption": ["a cat"] * 4,
        **columns, "key": keys, "status": ["success"] * 4, "error_message": [None] * 4,
        "width": [32] * 4, "height": [32] * 4, "original_width": [640] * 4,
        "original_height": [640] * 4, "md5": ["0"] * 4,
    })  # fmt: skip
    pq.write_table(table, folder / "00000.parquet")


RAW_COLUMNS = {
    "AESTHETIC_SCORE": [4.0, 5.5, 6.5, None], "hash": [1, 2, 3, 4], "similarity": [0.3] * 4,
    "punsafe": [0.1] * 4, "pwatermark": [0.1] * 4, "WIDTH": [600.0] * 4, "HEIGHT": [500.0] * 4,
    "note": ["kept", "as", "it", None],
}  # fmt: skip


def test_published_columns_of_adopted_shards_get_our_names_and_lose_nothing(tmp_path):
    write_raw_shard(tmp_path / "run", **RAW_COLUMNS)
    before = snapshot(tmp_path / "run")
    report = take(tmp_path / "run", tmp_path / "d")
    assert report.counts.ok == 4
    assert snapshot(tmp_path / "run") == before
    with DatasetTable(str(tmp_path / "d")) as table:
        found = table.execute(
            "SELECT aesthetic_v2_published, width_published, height_published, width, "
            "original_width, hash, note FROM dataset ORDER BY key"
        ).fetchall()
        names = {name.lower() for name in table.columns}
    assert found == [
        (score, 600, 500, 32, 640, i + 1, RAW_COLUMNS["note"][i])
        for i, score in enumerate(RAW_COLUMNS["AESTHETIC_SCORE"])
    ]
    assert len(names) == len(table.columns)
    report = subset(str(tmp_path / "d"), SubsetConfig(name="s", preset="sd-v1", allow_small=True))
    assert report.counts.ok == 2


def test_what_samples_say_in_json_is_kept_under_our_names(tmp_path):
    said = [{"TEXT": "in json", "AESTHETIC_SCORE": 6.5, "tags": ["a"], "n": 1}, {"n": 2.5}]
    members = {}
    for i, one in enumerate(said):
        members |= {f"{i}.jpg": picture(i), f"{i}.json": json.dumps(one).encode()}
    write_tar(tmp_path / "web/00000.tar", members)
    take(tmp_path / "web", tmp_path / "d")
    ref = list_shards(Folder(tmp_path / "d"))[0]
    rows = Folder(tmp_path / "d").read_table(ref.table).to_pylist()
    assert [(r["aesthetic_published"], r["tags"], r["n"]) for r in rows] == [
        (6.5, '["a"]', 1.0),
        (None, None, 2.5),
    ]


def test_a_folder_on_s3_is_adopted_where_it_lies(tmp_path, monkeypatch):
    moto_server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    write_raw_shard(tmp_path / "run", **RAW_COLUMNS)
    write_embeddings(tmp_path / "emb", "0", ["a", "b"])
    write_tar(tmp_path / "web/00000.tar", {"x.jpg": picture(0), "x.txt": b"a dog"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = moto_server.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("adopted")
        for name in ("run", "emb", "web"):
            store.put(str(tmp_path / name), f"adopted/{name}", recursive=True)
        before = {path: store.info(path)["ETag"] for path in store.find("adopted")}
        home = Folder("s3://adopted/d")
        for name in ("run", "web"):
            reports = [adopt(f"s3://adopted/{name}", home.url) for _ in range(2)]
            assert [report.skipped for report in reports] == [0, 1]
        adopt("s3://adopted/emb", home.url, AdoptConfig(model=OPENAI_B32))
        refs = {ref.name: ref for ref in list_shards(home)}
        assert refs["run-00000"].tar == "s3://adopted/run/00000.tar"
        with home.open(refs["web-00000"].tar) as file:
            assert file.read() == (tmp_path / "web/00000.tar").read_bytes()
        assert "aesthetic_v2_published" in home.read_table(refs["run-00000"].table).column_names
        (model,) = embedded_models(home)
        assert [ref.rows for ref in list_embeddings(home, model)] == [2]
        with pytest.raises(ConfigError, match="different stores"):
            adopt("s3://adopted/run", str(tmp_path / "d"))
        assert {path: store.info(path)["ETag"] for path in before} == before
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
