"""Decoding: every odd, broken and hostile file; orientation; colour; truncation; coarse decodes."""

import csv
import hashlib
import io
import struct
import sys
import tracemalloc
import zlib
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from laionkit.core.schemas import Reason
from laionkit.ops.color import to_rgb
from laionkit.ops.images import Limits, PictureError, decode, read_size, sniff

REFUSED_FORMATS = {"ICO", "PSD", "PPM", "TGA", "JPEG2000"}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def outcome(data: bytes) -> str:
    try:
        picture = decode(data)
    except PictureError as error:
        return error.reason
    return hashlib.sha256(picture.rgb.tobytes()).hexdigest()[:16]


def odd_rows(real_data):
    with (real_data / "odd-images/expected_pillow.csv").open() as file:
        return list(csv.DictReader(file))


def test_odd_images_decode_where_pillow_does_and_fail_with_a_reason_where_it_does_not(real_data):
    for row in odd_rows(real_data):
        data = (real_data / "odd-images" / row["file"]).read_bytes()
        got = outcome(data)
        if sniff(data) == "heic" and find_spec("pillow_heif"):
            continue  # the table is of a Pillow without it
        if row["rgb"] == "ok" and row["format"] not in REFUSED_FORMATS:
            assert got not in list(Reason), row["file"]
        else:
            assert got in list(Reason), row["file"]


def test_plain_odd_images_have_pillows_exact_pixels(real_data):
    same = 0
    for row in odd_rows(real_data):
        if row["rgb"] != "ok" or row["mode"] not in ("RGB", "L") or row["format"] == "MPO":
            continue
        turned = row["exif_orientation"] not in ("", "1")
        if turned or row["format"] in REFUSED_FORMATS or "trns" in row["file"]:
            continue
        data = (real_data / "odd-images" / row["file"]).read_bytes()
        assert outcome(data) == row["rgb_sha256_16"], row["file"]
        same += 1
    assert same >= 36


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_is_refused_by_its_header_before_a_pixel_is_decoded(depth):
    """A PNG's EXIF may stand behind its pixels, so that asking for the orientation decodes it."""
    header = struct.pack(">IIBBBBB", 9000, 9000, depth, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"no pixels")
    with pytest.raises(PictureError) as caught:
        decode(data, Limits(max_pixels=1_000_000))
    assert caught.value.reason == Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_wide_grey_picture_takes_no_more_than_a_few_times_its_pixels(mode):
    image = Image.new(mode, (2000, 3000))
    image.putpixel((1, 1), 1000)
    image.putpixel((1999, 2999), 65535)
    tracemalloc.start()
    rgb = np.asarray(to_rgb(image))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 3000 * 12  # in double precision at once: 40
    assert rgb[1, 1, 0] == 4
    assert rgb[-1, -1, 0] == 255
    assert rgb[0, 0, 0] == 0


def test_a_broken_exif_block_does_not_cost_the_picture():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    block = bytearray(exif.tobytes())
    for place in range(6, len(block)):
        odd = bytes(block[:place]) + b"\xff" + bytes(block[place + 1 :])
        file = io.BytesIO()
        gradient(30, 20).save(file, "PNG", exif=odd)
        picture = decode(file.getvalue())
        assert sorted(picture.rgb.shape) == [3, 20, 30]


def test_bombs_are_refused_from_their_header(real_data):
    for row in odd_rows(real_data):
        if "DecompressionBomb" in row["open"] and not row["file"].endswith(".ico"):
            data = (real_data / "odd-images" / row["file"]).read_bytes()
            assert outcome(data) == Reason.TOO_MANY_PIXELS, row["file"]


def test_truncated_files_are_told_from_broken_ones(real_data):
    for name in ("truncated_jpeg.jpg", "truncated_image.png", "bmp__b__shortfile.bmp"):
        data = (real_data / "odd-images/pillow" / name).read_bytes()
        assert outcome(data) == Reason.TRUNCATED_IMAGE, name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_a_file_cut_anywhere_never_raises_anything_else(kind):
    data = encoded(gradient(), kind)
    for size in range(0, len(data), max(1, len(data) // 40)):
        outcome(data[:size])


def test_a_jpeg_cut_in_its_pixels_is_refused():
    data = encoded(gradient(400, 300), "JPEG", quality=95)
    assert outcome(data[: len(data) // 2]) == Reason.TRUNCATED_IMAGE


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 4}])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_whole(options):
    data = encoded(gradient(), "JPEG", quality=95, **options)
    for lost in (1, 2):
        assert outcome(data[:-lost]) == outcome(data)
    for lost in (3, 4, 9):
        assert outcome(data[:-lost]) == Reason.TRUNCATED_IMAGE
    progressive = encoded(gradient(), "JPEG", progressive=True)
    assert outcome(progressive[:-2]) == Reason.TRUNCATED_IMAGE  # another scan may have followed


def test_all_orientations_of_one_scene_look_alike(real_data):
    folder = real_data / "images/exif-orientation"
    scenes = [decode((folder / f"Landscape_{i}.jpg").read_bytes()) for i in range(9)]
    for scene in scenes[2:]:
        assert scene.rgb.shape == scenes[1].rgb.shape
        assert np.abs(scene.rgb.astype(int) - scenes[1].rgb).mean() < 12
        assert (scene.original_width, scene.original_height) == scene.rgb.shape[1::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = gradient(64, 48)
    fast = decode(encoded(image, "JPEG", exif=exif, quality=98, subsampling=0)).rgb
    slow = decode(encoded(image, "PNG", exif=exif)).rgb
    assert fast.shape == slow.shape
    assert np.abs(fast.astype(int) - slow).mean() < 3


def test_alpha_is_laid_on_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert decode(encoded(clear, "PNG")).rgb.min() == 255
    assert np.unique(decode(encoded(half, "PNG")).rgb).tolist() == [127]
    assert decode(encoded(palette, "PNG", transparency=0)).rgb.min() == 255
    assert decode(encoded(palette, "GIF")).rgb[0, 0].tolist() == [10, 20, 30]


def test_sixteen_bit_greys_are_scaled_not_clipped():
    values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    rgb = decode(encoded(Image.fromarray(values), "PNG")).rgb
    assert rgb[..., 0].ravel().tolist() == list(range(256))


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colours_are_scaled_not_clipped(kind, channels):
    wide = np.full((16, 16, channels), 65535, np.uint16)
    wide[..., 2] = np.arange(256).reshape(16, 16) * 257  # OpenCV's order: blue, green, red
    rgb = decode(cv2.imencode(kind, wide)[1].tobytes()).rgb
    assert rgb[..., 0].ravel().tolist() == list(range(256))
    assert rgb[..., 1:].min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_greys_come_out_as_the_same_greys(kind):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("CMYK")
    rgb = decode(encoded(grey, kind)).rgb.astype(int)
    assert np.abs(rgb - np.arange(256).reshape(16, 16, 1)).max() <= 3


def test_an_embedded_profile_is_converted_to_srgb():
    xyz = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    image = Image.new("RGB", (16, 16), (120, 60, 200))
    broken = decode(encoded(image, "PNG", icc_profile=b"no profile")).rgb
    other_space = decode(encoded(image, "PNG", icc_profile=xyz.tobytes())).rgb
    assert broken[0, 0].tolist() == other_space[0, 0].tolist() == [120, 60, 200]


# Primaries (x, y) of red, green and blue, and the exponent: Adobe RGB (1998), 4.3.1, and SMPTE
# RP 431-2 with the white of sRGB, which is Display P3 (its curve simplified to an exponent).
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), 2.19921875)
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), 2.2)
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
D65, D50 = np.array([0.95047, 1.0, 1.08883]), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def to_xyz(primaries) -> np.ndarray:
    """Linear RGB of these primaries and white D65 to XYZ: a column for each primary."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries[:3]]).T
    return columns * np.linalg.solve(columns, D65)


def icc_profile(space) -> bytes:
    """An ICC version 2 matrix profile (ICC.1:2001-04), adapted to D50 as the standard asks."""
    adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD
    fixed = lambda values: b"".join(struct.pack(">i", round(v * 65536)) for v in values)  # noqa: E731
    text = b"wide space\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(D50),
    }
    for name, column in zip((b"r", b"g", b"b"), (adapt @ to_xyz(space)).T, strict=True):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + fixed(column)
        tags[name + b"TRC"] = b"curv" + bytes(4) + struct.pack(">IH", 1, round(space[3] * 256))
    table, data, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">2I", place + len(data), len(value))
        data += value
    head = struct.pack(
        ">I4sI4s4s4s", place + len(data), bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    head = head.ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + fixed(D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def in_srgb(rgb, space) -> np.ndarray:
    """What colours of another space are in sRGB (IEC 61966-2-1), by the book."""
    linear = (np.asarray(rgb) / 255) ** space[3]
    linear = np.linalg.inv(to_xyz(SRGB_PRIMARIES)) @ to_xyz(space) @ linear
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("space", [ADOBE_RGB, DISPLAY_P3])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "colour", [(120, 60, 200), (180, 90, 70), (120, 150, 130), (128, 128, 128)]
)
def test_colours_of_a_wide_space_come_out_as_srgb(space, kind, colour):
    exact = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
        "WEBP": {"lossless": True},
    }
    image = Image.new("RGB", (16, 16), colour)
    options = {"icc_profile": icc_profile(space), **exact.get(kind, {})}
    got = decode(encoded(image, kind, **options)).rgb[8, 8]
    wanted = in_srgb(colour, space)
    assert np.abs(got - wanted).max() <= 3, (got, wanted)
    if colour != (128, 128, 128):
        assert np.abs(np.array(colour) - wanted).max() > 6  # the profile does matter


def test_heic_decodes_with_its_extra():
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    file = io.BytesIO()
    pillow_heif.from_pillow(gradient(64, 48)).save(file, quality=95)
    data = file.getvalue()
    assert sniff(data) == "heic"
    picture = decode(data)
    assert (picture.format, picture.original_width, picture.original_height) == ("heic", 64, 48)
    assert np.abs(picture.rgb.astype(int) - np.asarray(gradient(64, 48))).mean() < 6
    with pytest.raises(PictureError) as caught:
        decode(data[: len(data) // 2])
    assert caught.value.reason in (Reason.TRUNCATED_IMAGE, Reason.DECODE_FAILED)


def test_heic_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k != "HEIF"})
    with pytest.raises(PictureError, match=r"pip install laionkit\[heic\]") as caught:
        decode(b"\0\0\0\x18ftypheic" + bytes(100))
    assert caught.value.reason == Reason.FORMAT_REFUSED


def test_a_cmyk_picture_comes_out_as_rgb(real_data):
    data = (real_data / "odd-images/pillow/pil_sample_cmyk.jpg").read_bytes()
    assert decode(data).rgb.shape == (100, 100, 3)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_pixels=2399), Reason.TOO_MANY_PIXELS),
        (Limits(min_edge_px=41), Reason.TOO_SMALL),
        (Limits(max_aspect=1.4), Reason.ASPECT_REFUSED),
        (Limits(formats=("webp",)), Reason.FORMAT_REFUSED),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_limits_are_judged_from_the_header(limits, reason, kind):
    whole = encoded(gradient(), kind)
    with pytest.raises(PictureError) as caught:
        decode(whole[:-20], limits)
    assert caught.value.reason == reason


def test_a_jpeg_of_thousands_of_scans_is_refused():
    data = encoded(gradient(64, 64), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    many = data[:first] + data[first:second] * 500 + data[second:]
    assert outcome(many) == Reason.DECODE_TIMEOUT


def test_a_coarse_decode_stays_well_above_its_target():
    data = encoded(gradient(1600, 1200), "JPEG", quality=95)
    picture = decode(data, shrink_to=lambda size: (256, 192))
    height, width = picture.rgb.shape[:2]
    assert (picture.original_width, picture.original_height) == (1600, 1200)
    assert 512 <= width < 1600
    assert 384 <= height < 1200


@pytest.mark.parametrize(
    ("data", "reason", "word"),
    [
        (b"", Reason.NOT_AN_IMAGE, "no bytes"),
        (b"<!DOCTYPE html><p>gone", Reason.NOT_AN_IMAGE, "HTML"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', Reason.FORMAT_REFUSED, "svg"),
        (b"\x00" * 100, Reason.NOT_AN_IMAGE, "begins"),
    ],
)
def test_what_is_no_picture_is_named(data, reason, word):
    with pytest.raises(PictureError, match=word) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_the_size_is_read_without_decoding():
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(gradient(), kind)
        assert read_size(data) == (sniff(data), 60, 40)
