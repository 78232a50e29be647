"""Take what tells of people out of a picture's file (EXIF, XMP, IPTC, texts), its pixels untouched.

Layouts: JPEG, ITU-T T.81, B.1; PNG, third edition, 5.3; WebP, RFC 9649, 2.
"""

import re
import struct

# EXIF and XMP lie in APP1, IPTC in APP13, a camera's track in others; comments may hold anything.
# What tells of colours is kept: JFIF (APP0), profiles (APP2), Adobe's transform (APP14).
_JPEG_DROPPED = frozenset({*range(0xE0, 0xF0), 0xFE}) - {0xE0, 0xE2, 0xEE}
# The first marker that is neither a stuffed byte nor a restart: the end of a scan's data.
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_PNG_DROPPED = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME"})
_WEBP_DROPPED = frozenset({b"EXIF", b"XMP "})
_WEBP_FLAGS = 0x08 | 0x04  # of VP8X: there is EXIF, there is XMP


def strip(data: bytes, kind: str) -> bytes | None:
    """The same picture without metadata; the same bytes where it has none.

    `kind` is ``jpeg``, ``png`` or ``webp``. None where the file is too odd to be sure: it must be
    encoded anew then.
    """
    try:
        return {"jpeg": _jpeg, "png": _png, "webp": _webp}[kind](data)
    except struct.error:
        return None


def _jpeg(data: bytes) -> bytes | None:
    kept, place = [data[:2]], 2
    while True:
        mark, marker = struct.unpack_from(">BB", data, place)
        if mark != 0xFF or not 0xC0 <= marker <= 0xFE:
            return None
        if marker == 0xD9:  # whatever lies behind the end is dropped with the rest
            return b"".join([*kept, b"\xff\xd9"])
        (size,) = struct.unpack_from(">H", data, place + 2)
        end = place + 2 + size
        if marker == 0xDA:
            after = _AFTER_SCAN.search(data, end)
            if after is None:
                return None
            end = after.start()
        if end > len(data) or (marker == 0xE2 and data[place + 4 : place + 8] == b"MPF\0"):
            return None  # of MPF's pictures, each has an EXIF block of its own
        if marker not in _JPEG_DROPPED:
            kept.append(data[place:end])
        place = end


def _png(data: bytes) -> bytes | None:
    kept, place = [data[:8]], 8
    while True:
        size, name = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + 12 + size]
        if len(chunk) < 12 + size:
            return None
        if name not in _PNG_DROPPED:
            kept.append(chunk)
        if name == b"IEND":
            return b"".join(kept)
        place += 12 + size


def _webp(data: bytes) -> bytes | None:
    kept, place = [b"WEBP"], 12
    while place < len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        whole = 8 + size + size % 2
        chunk = data[place : place + whole]
        if len(chunk) < whole:
            return None
        if name == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_FLAGS]) + chunk[9:]
        if name not in _WEBP_DROPPED:
            kept.append(chunk)
        place += whole
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
