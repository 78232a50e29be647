"""What fetch can be told about pictures: hashes, blocklist, boxes, formats, filters, EXIF."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from laionkit.core.errors import ConfigError, InputError
from laionkit.core.runner import Runner
from laionkit.ops.blur import blur_boxes
from laionkit.ops.hashes import hamming, phash
from laionkit.ops.images import decode
from laionkit.stages.fetch import FetchConfig, fetch
from tests.fault_server import FaultServer
from tests.stages.shards import picture
from tests.stages.test_fetch import make_dataset, rows_of


def with_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", 6
    exif.get_ifd(0x8769)[0x829A] = IFDRational(2, 120)
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.34)
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(7, 200, 300))).save(file, "JPEG", exif=exif)
    return file.getvalue()


PICTURES = {f"{i}.jpg": picture(i, 200, 300) for i in range(6)} | {
    "exif.jpg": with_exif(),
    "small.jpg": picture(8, 20, 30),
    "long.jpg": picture(9, 40, 300),
    "a.png": picture(10, 64, 64, "PNG"),
}


@pytest.fixture(scope="module")
def server():
    with FaultServer(PICTURES) as running:
        yield running


def run(folder: Path, server: FaultServer, names: list[str], columns=None, **settings):
    urls = [f"{server.url}/img/{name}" for name in names]
    dataset = make_dataset(folder, urls, **(columns or {}))
    fetch(dataset, FetchConfig(allow_private=True, **settings), runner=Runner(workers=1))
    return dataset, rows_of(dataset).to_pylist()


def images(dataset: str) -> dict[str, bytes]:
    with tarfile.open(Path(dataset) / "shards/00000.tar") as tar:
        return {n: tar.extractfile(n).read() for n in tar.getnames()}


def test_hashes_of_the_original_are_kept_on_request(tmp_path, server):
    _, rows = run(tmp_path, server, ["0.jpg"], compute_md5=True, compute_phash=True)
    data = PICTURES["0.jpg"]
    assert rows[0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert rows[0]["md5"] == hashlib.md5(data).hexdigest()
    assert hamming(rows[0]["phash"], phash(decode(data).rgb)) <= 2


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_picture_that_changed_since_is_refused(tmp_path, server, kind):
    good = hashlib.new(kind, PICTURES["0.jpg"]).hexdigest()
    columns = {kind: [good.upper(), good, None]}
    _, rows = run(tmp_path, server, ["0.jpg", "1.jpg", "2.jpg"], columns, verify_hash=kind)
    assert [row["reason"] for row in rows] == [None, "hash_mismatch", None]


def test_a_picture_near_enough_passes_the_perceptual_check(tmp_path, server):
    near = phash(decode(PICTURES["0.jpg"]).rgb)
    columns = {"seen": [f"{int(near, 16) ^ 7:016x}", near]}
    _, rows = run(
        *(tmp_path, server, ["0.jpg", "3.jpg"], columns),
        **{"verify_hash": "phash", "verify_column": "seen"},
    )
    assert [row["reason"] for row in rows] == [None, "hash_mismatch"]


def test_a_hash_column_that_is_not_there_is_the_users_mistake(tmp_path, server):
    with pytest.raises(ConfigError, match="verify_hash=sha256: the work list has no column"):
        run(tmp_path, server, ["0.jpg"], verify_hash="sha256")
    with pytest.raises(ConfigError, match="add --verify-hash"):
        run(tmp_path, server, ["0.jpg"], verify_column="x")


def test_blocked_pictures_are_only_counted(tmp_path, server):
    blocklist = tmp_path / "blocked.txt"
    one, two = hashlib.sha256(PICTURES["1.jpg"]), hashlib.md5(PICTURES["2.jpg"])
    blocklist.write_text(f"# takedowns\n{one.hexdigest().upper()}\n\n{two.hexdigest()}\n")
    names = ["0.jpg", "1.jpg", "2.jpg"]
    dataset, rows = run(tmp_path, server, names, blocklist=str(blocklist))
    assert [row["reason"] for row in rows] == [None, "content_blocked", "content_blocked"]
    assert {name[:6] for name in images(dataset)} == {"000000"}
    blocklist.write_text("not a hash\n")
    with pytest.raises(InputError, match="no sha256 or md5"):
        run(tmp_path / "b", server, names, blocklist=str(blocklist))


def test_boxes_are_blurred_and_nothing_else(tmp_path, server):
    columns = {"faces": [[[0.1, 0.1, 0.4, 0.4]], []]}
    settings = {"resize_mode": "no", "encode_format": "png", "encode_quality": 1}
    dataset, _ = run(tmp_path, server, ["0.jpg", "1.jpg"], columns, bbox_column="faces", **settings)
    made = images(dataset)
    original = decode(PICTURES["0.jpg"]).rgb.astype(int)
    change = np.abs(decode(made["000000.png"]).rgb.astype(int) - original)
    assert change[:, 200:].max() <= 1
    assert change[20:80, 30:120].mean() > 1
    assert (decode(made["000001.png"]).rgb == decode(PICTURES["1.jpg"]).rgb).all()


@pytest.mark.parametrize("boxes", [[[0, 0, 1]], [[float("nan")] * 4], [[0.5, 0.5, 0.5, 0.5]], []])
def test_boxes_that_are_none_change_nothing(boxes):
    image = decode(PICTURES["0.jpg"]).rgb
    assert blur_boxes(image, boxes) is image


@pytest.mark.filterwarnings("ignore")
def test_the_blur_is_img2datasets():
    blurrer = pytest.importorskip("img2dataset.blurrer")
    image = decode(PICTURES["2.jpg"]).rgb
    boxes = [[0.2, 0.3, 0.5, 0.6], [0.8, 0.8, 1.0, 1.0]]
    theirs = blurrer.BoundingBoxBlurrer()(image, boxes)
    assert np.abs(blur_boxes(image, boxes).astype(int) - theirs).mean() < 1


@pytest.mark.parametrize(("kind", "quality"), [("png", 6), ("webp", 90)])
def test_other_formats_can_be_written(tmp_path, server, kind, quality):
    settings = {"encode_format": kind, "encode_quality": quality}
    dataset, _ = run(tmp_path, server, ["0.jpg"], image_size=64, **settings)
    assert decode(images(dataset)[f"000000.{kind}"]).format == kind


def test_own_bytes_are_kept_where_nothing_changes(tmp_path, server):
    names = ["small.jpg", "exif.jpg", "a.png"]
    settings = {"skip_reencode": True, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}
    dataset, rows = run(tmp_path, server, names, image_size=256, **settings)
    made = images(dataset)
    assert made["000000.jpg"] == PICTURES["small.jpg"]
    assert made["000001.jpg"] != PICTURES["exif.jpg"]
    assert (rows[1]["width"], rows[1]["height"]) == (200, 300)
    assert decode(made["000002.jpg"]).format == "jpeg"


def test_sides_area_aspect_and_bytes_can_be_bounded(tmp_path, server):
    names = ["0.jpg", "small.jpg", "long.jpg"]
    settings = {"min_image_size": 25, "max_aspect_ratio": 3}
    _, rows = run(tmp_path / "a", server, names, **settings)
    assert [row["reason"] for row in rows] == [None, "too_small", "aspect_refused"]
    _, rows = run(tmp_path / "b", server, names, max_image_area=50_000, min_bytes=1000)
    assert [row["reason"] for row in rows] == ["too_many_pixels", "too_few_bytes", None]


def test_exif_is_kept_in_the_row_on_request_and_never_in_the_image(tmp_path, server):
    dataset, rows = run(tmp_path / "a", server, ["exif.jpg", "0.jpg"], extract_exif=True)
    exif = json.loads(rows[0]["exif"])
    assert exif["Image Make"] == "Camera"
    assert exif["EXIF ExposureTime"] == "1/60"
    assert exif["GPS GPSLatitudeRef"] == "N"
    assert exif["GPS GPSLatitude"] == "[52, 31, 617/50]"
    assert rows[1]["exif"] is None
    assert decode(images(dataset)["000000.jpg"]).exif == b""
    _, rows = run(tmp_path / "b", server, ["exif.jpg"])
    assert rows[0]["exif"] is None


def test_a_quality_that_the_format_has_not_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="0 to 9"):
        fetch(str(tmp_path), FetchConfig(encode_format="png"))


@pytest.mark.filterwarnings("ignore")
def test_shards_are_read_by_webdataset_datasets_and_torch_trainers(tmp_path, server):
    webdataset = pytest.importorskip("webdataset")
    datasets = pytest.importorskip("datasets")
    names = [f"{i}.jpg" for i in range(6)]
    dataset, rows = run(tmp_path, server, [*names, "missing.jpg"], image_size=64)
    tar = str(Path(dataset) / "shards/00000.tar")
    samples = list(webdataset.WebDataset(tar, shardshuffle=False).decode("rgb8"))
    assert [s["__key__"] for s in samples] == [row["key"] for row in rows[:6]]
    assert samples[0]["jpg"].shape == (64, 64, 3)
    assert samples[3]["json"]["original_width"] == 300
    loaded = datasets.load_dataset(
        "webdataset", data_files=[tar], split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 6
    assert loaded[0]["txt"] == "caption 0"


@pytest.mark.filterwarnings("ignore")
def test_img2dataset_reads_our_tables_as_its_input(tmp_path, server):
    """Its reader takes a folder of our parquet files, so that a set can move back at any time."""
    reader = pytest.importorskip("img2dataset.reader")
    (tmp_path / "tmp").mkdir()
    names = [f"{i}.jpg" for i in range(6)]
    dataset, rows = run(tmp_path, server, [*names, "missing.jpg"], image_size=64)
    found = reader.Reader(
        *(str(Path(dataset) / "shards"), "parquet", "url", "caption", "sha256", "sha256"),
        *(["key", "width"], 100, set(), str(tmp_path / "tmp")),
    )
    ((number, path),) = list(found)
    with pa.ipc.open_file(path) as read:
        table = read.read_all()
    assert number == 0
    for name in ("url", "caption", "sha256", "key", "width"):
        assert table.column(name).to_pylist() == [row[name] for row in rows]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bbox_column": "face"}, r"bbox_column=face: .* no column face \(did you mean faces\?\)"),
        ({"verify_hash": "md5"}, "verify_hash=md5: the work list has no column src_md5 or md5"),
        ({"verify_hash": "md5", "verify_column": "sum"}, "verify_column=sum: .* no column sum"),
        ({"blocklist": "nowhere/hashes.txt"}, "nowhere/hashes.txt: there is no such file"),
        ({"resolver": "name.server"}, "name.server"),
    ],
)
def test_a_mistaken_setting_is_refused_before_anything_is_set_aside(
    tmp_path, server, settings, message
):
    columns = {"faces": pa.array([None], pa.list_(pa.list_(pa.float32())))}
    dataset, _ = run(tmp_path, server, ["0.jpg"], columns)
    before = sorted(path for path in Path(dataset).rglob("*") if path.is_file())
    fresh = Runner(workers=1, fresh=True, yes=True)
    with pytest.raises(ConfigError, match=message):
        fetch(dataset, FetchConfig(allow_private=True, **settings), runner=fresh)
    assert sorted(path for path in Path(dataset).rglob("*") if path.is_file()) == before
