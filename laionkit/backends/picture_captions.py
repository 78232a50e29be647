"""The caption that a picture file carries in itself: IPTC, XMP or EXIF, whichever people wrote.

IPTC's Caption-Abstract and XMP's dc:description come first, since many cameras fill EXIF's
ImageDescription with their own name. Encodings follow the Metadata Working Group's guidelines
(2010): what is declared; else UTF-8 where the bytes are UTF-8; else the old Western code page.
"""

import re
import warnings
from typing import Any, BinaryIO
from xml.etree import ElementTree

from PIL import Image, ImageFile, IptcImagePlugin

MAX_CHARS = 65_536
MAX_XMP_BYTES = 1 << 20
_IMAGE_DESCRIPTION = 0x010E
_CODED_CHARACTER_SET, _CAPTION_ABSTRACT = (1, 90), (2, 120)
_UTF_8, _LATIN_1 = b"\x1b%G", (b"\x1b.A", b"\x1b/A")
_DC, _RDF = "{http://purl.org/dc/elements/1.1/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
# What cameras and phones write into every picture's ImageDescription.
_FILLER = re.compile(
    r"(konica |minolta |olympus |samsung )*(digital camera|dsc)|sony dsc|samsung|<?digimax.*"
    r"|exif_jpeg_picture|default|untitled|(dcim|[a-z]:)[\\/].*"
    r"|dav|r?hdr|sdr|mde|cof|edf|ptr|oznor\w*",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def embedded_caption(file: BinaryIO) -> str | None:
    """The caption that a picture's metadata blocks hold; only its header is read.

    None where there is none, or where the blocks are broken: a picture without a caption is still
    a picture, and whether it is one at all is for those to say who decode it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken blocks, and of sizes: nothing is decoded
            with Image.open(file) as image:
                return _iptc(image) or _xmp(image.info.get("xmp")) or _exif(image)
    except Exception:  # noqa: BLE001 - a hostile block can raise anything and must cost no picture
        return None


def decode_text(data: bytes, declared: str | None = None) -> str:
    """Bytes as text, in the encoding declared; else UTF-8 where they are that, else cp1252.

    cp1252 is Latin-1 with letters in place of control codes, as those who say Latin-1 mean it. A
    byte order mark counts.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    if declared is None:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            declared = "cp1252"
    return data.decode(declared, "replace")


def _iptc(image: ImageFile.ImageFile) -> str | None:
    found = IptcImagePlugin.getiptcinfo(image) or {}
    caption: Any = found.get(_CAPTION_ABSTRACT)
    if isinstance(caption, list):
        caption = caption[0]
    if not isinstance(caption, bytes):
        return None
    encodings = dict.fromkeys(_LATIN_1, "cp1252")
    declared = encodings.get(found.get(_CODED_CHARACTER_SET))  # type: ignore[arg-type]
    return _clean(decode_text(caption.rstrip(b"\0"), declared))


def _exif(image: Image.Image) -> str | None:
    text = image.getexif().get(_IMAGE_DESCRIPTION)
    if isinstance(text, str):  # Pillow reads it as Latin-1, whatever it is
        text = text.encode("latin-1", "replace")
    if not isinstance(text, bytes):
        return None
    caption = _clean(decode_text(text.rstrip(b"\0")))
    return None if caption is None or _FILLER.fullmatch(caption) else caption


def _xmp(packet: Any) -> str | None:
    if not isinstance(packet, bytes) or len(packet) > MAX_XMP_BYTES:
        return None
    if b"<!" in packet.replace(b"\0", b"").replace(b"<!--", b""):  # entities can explode
        return None
    start = max(packet.find(b"<"), 0)
    try:
        root = ElementTree.fromstring(packet[start:].rstrip(b"\0 \n"))
    except ElementTree.ParseError:
        return None
    for element in root.iter(f"{_DC}description"):
        entries = list(element.iter(f"{_RDF}li"))
        first = [e for e in entries if e.get(_LANG) == "x-default"] or entries or [element]
        if caption := _clean(first[0].text or ""):
            return caption
    named = (e.get(f"{_DC}description") for e in root.iter(f"{_RDF}Description"))
    return next((_clean(text) for text in named if text), None)


def _clean(text: str) -> str | None:
    return _CONTROL.sub("", text).strip()[:MAX_CHARS] or None
