"""Metadata out, pixels untouched."""

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from laionkit.ops.images import PictureError, decode
from laionkit.ops.stored_image import ImageMaker
from laionkit.ops.strip import strip
from tests.ops.test_images import gradient

SECRET = b"Jane Doe, 12 Hidden Lane"


def told(kind: str) -> bytes:
    """A picture with the secret wherever its format can hold one."""
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    exif.get_ifd(0x8825)[1] = "N"
    options = {"exif": exif, "xmp": b"<x>" + SECRET + b"</x>"}
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Author", SECRET.decode())
        texts.add_itxt("XML:com.adobe.xmp", SECRET.decode())
        options = {"exif": exif, "pnginfo": texts}
    file = io.BytesIO()
    gradient(48, 40).save(file, kind, **options, **({"comment": SECRET} if kind == "JPEG" else {}))
    data = file.getvalue()
    if kind == "JPEG":
        for segment in (b"\xff\xed", b"\xff\xe6", b"\xff\xec"):  # a camera's track is in APP6
            data = data[:2] + segment + struct.pack(">H", len(SECRET) + 2) + SECRET + data[2:]
    behind = SECRET + b"\xff\xd9" if kind != "WEBP" else b""
    return data + behind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_metadata_goes_and_the_pixels_stay(kind):
    data = told(kind)
    assert data.count(SECRET) >= 2
    bare = strip(data, kind.lower())
    assert SECRET not in bare
    assert decode(bare).exif == b""
    assert (decode(bare).rgb == decode(data).rgb).all()
    assert strip(bare, kind.lower()) == bare
    extension = {"JPEG": "jpg"}.get(kind, kind.lower())
    maker = ImageMaker(encode_format=extension, skip_reencode=True, extract_exif=True)
    found = ImageMaker.make(maker, data)
    assert SECRET not in found.image
    assert SECRET.decode() in (found.exif or "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_anywhere_is_never_kept_wrong(kind):
    data = told(kind)
    for size in range(12, len(data), 7):
        bare = strip(data[:size], kind.lower())
        assert bare is None or SECRET not in bare


@given(st.binary(max_size=200))
def test_no_bytes_raise(tail):
    for kind, head in (
        ("jpeg", b"\xff\xd8"),
        ("png", b"\x89PNG\r\n\x1a\n"),
        ("webp", b"RIFF____WEBP"),
    ):
        strip(head + tail, kind)


def test_a_progressive_jpeg_keeps_all_its_scans():
    file = io.BytesIO()
    gradient(200, 150).save(file, "JPEG", progressive=True, comment=SECRET)
    data = file.getvalue()
    bare = strip(data, "jpeg")
    assert SECRET not in bare
    assert (decode(bare).rgb == decode(data).rgb).all()
    assert len(bare) == len(data) - len(SECRET) - 4


def test_real_files_keep_their_pixels(real_data):
    seen = 0
    for path in sorted((real_data / "odd-images").rglob("*")):
        kind = {".jpg": "jpeg", ".png": "png", ".webp": "webp"}.get(path.suffix)
        if kind is None:
            continue
        data = path.read_bytes()
        try:
            picture = decode(data)
        except PictureError:
            continue
        if picture.is_plain and picture.format == kind and (bare := strip(data, kind)) is not None:
            assert (decode(bare).rgb == picture.rgb).all(), path.name
            seen += 1
    assert seen > 10
