"""Captions inside picture files: where they stand, how they are encoded, what hostile blocks do."""

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from laionkit.backends.picture_captions import decode_text, embedded_caption

TEXT = "Zürich – ein Café"  # with a dash that Latin-1 lacks and cp1252 has


def picture(kind: str = "jpeg", **saved: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, **saved)
    return file.getvalue()


def exif(text: bytes | str) -> Image.Exif:
    block = Image.Exif()
    block[0x010E] = text
    return block


def xmp(text: str, more: str = "") -> bytes:
    return f"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>{more}
    <x:xmpmeta xmlns:x="adobe:ns:meta/">
    <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description>
    <rdf:Alt><rdf:li xml:lang="de">andere</rdf:li><rdf:li xml:lang="x-default">{text}</rdf:li>
    </rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>
    <?xpacket end="w"?>""".encode()


def with_iptc(jpeg: bytes, caption: bytes, charset: bytes | None = None) -> bytes:
    """A JPEG with an IPTC block in a Photoshop resource, as editors write it."""
    sets = [] if charset is None else [(1, 90, charset)]
    sets.append((2, 120, caption))
    block = b"".join(struct.pack(">BBBH", 0x1C, r, n, len(v)) + v for r, n, v in sets)
    resource = (
        b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(block)) + block + b"\0" * (len(block) % 2)
    )
    body = b"Photoshop 3.0\0" + resource
    return jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def caption(data: bytes) -> str | None:
    return embedded_caption(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_exif_and_xmp_are_found_in_every_format(kind):
    assert caption(picture(kind, exif=exif("a red circle"))) == "a red circle"
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp("a blue square").decode())
    saved = {"pnginfo": text} if kind == "png" else {"xmp": xmp("a blue square")}
    if kind != "tiff":
        assert caption(picture(kind, **saved)) == "a blue square"
    assert caption(picture(kind)) is None


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_text_of_undeclared_encoding_is_utf_8_where_it_is_that_else_western(encoding):
    data = TEXT.encode(encoding)
    assert caption(picture(exif=exif(data))) == TEXT
    assert caption(with_iptc(picture(), data)) == TEXT
    assert decode_text(data) == TEXT
    assert decode_text("é".encode("utf-16")) == "é"
    assert decode_text(b"\xef\xbb\xbfmarked") == "marked"


def test_a_declared_encoding_of_iptc_counts():
    utf_8 = "Café".encode()
    assert caption(with_iptc(picture(), utf_8, b"\x1b%G")) == "Café"
    assert caption(with_iptc(picture(), utf_8, b"\x1b.A")) == "CafÃ©"
    assert caption(with_iptc(picture(), "Café".encode("latin-1"), b"\x1b%G")) == "Café"


def test_what_people_wrote_goes_before_what_cameras_write():
    named = picture(exif=exif("OLYMPUS DIGITAL CAMERA         "))
    assert caption(named) is None
    assert caption(with_iptc(named, b"a cat")) == "a cat"
    both = picture(exif=exif("from exif"), xmp=xmp("from xmp"))
    assert caption(both) == "from xmp"
    assert caption(with_iptc(both, b"from iptc")) == "from iptc"
    assert caption(picture(exif=exif("cat"))) == "cat"
    assert caption(picture(exif=exif(b"padded\0\0  \0"))) == "padded"


def test_entities_in_xmp_are_not_expanded():
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
    assert caption(picture(xmp=xmp("&b;", laughs))) is None
    assert caption(picture(xmp=xmp("a < b"))) is None  # no XML


@settings(max_examples=150)
@given(edits=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=12),
       end=st.integers(0, 1500))  # fmt: skip
def test_broken_blocks_cost_a_caption_and_nothing_more(edits, end):
    data = bytearray(with_iptc(picture(exif=exif("one"), xmp=xmp("two")), b"three"))
    for place, value in edits:
        data[place] = value
    found = caption(bytes(data[:end]))
    assert found is None or isinstance(found, str)
    if found is not None:
        found.encode()


def test_odd_pictures_cost_nothing(real_data):
    files = [path for path in (real_data / "odd-images").rglob("*") if path.is_file()]
    assert len(files) > 100
    for path in files:
        with Path(path).open("rb") as file:
            found = embedded_caption(file)
        assert found is None or found.strip() == found
