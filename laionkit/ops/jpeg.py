"""JPEG without Pillow: the header read in Python, the pixels by libjpeg-turbo (simplejpeg).

Only what libjpeg decodes the same way everywhere is taken (8-bit grey or YCbCr, Huffman coded);
all else, and every file with a warning, is left to the caller's slower and more tolerant path.
"""

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

# A progressive file of a few kB can hold thousands of scans and take minutes to decode; real ones
# have about ten. libjpeg-turbo's fuzzers stop at 500.
MAX_SCANS = 100

# How much larger than the target a DCT-scaled decode must stay. Beside an exact area resize of the
# whole, then JPEG q95, drawn pages of text and lines lose 0.4 dB on average and 0.55 at worst at
# 1.9 (0.3 and 0.64 from 2.0 on), photographs 0.1; at 1.5 they lost up to 5.5 dB. A camera's 3:2
# picture of 1,500 pixels comes to 1.95 of the usual 256.
OVERSIZE = 1.9
# Scales in eighths that libjpeg-turbo has SIMD code for; 3/8 is as slow as decoding the whole.
_SCALES = (1, 2, 4)
# Below so many pixels a side, a scaled size does not tell its scale (see ops/resize.py).
MIN_SCALED_EDGE = 64

_END = b"\xff\xd9"
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG says before its first scan. `frame` is the SOF marker's low nibble."""

    width: int
    height: int
    components: int
    precision: int
    frame: int
    exif: bytes
    icc: bytes
    adobe_transform: int | None

    @property
    def is_plain(self) -> bool:
        """Whether every decoder agrees on the colours: 8-bit grey or YCbCr, Huffman coded."""
        ycc = self.components == 3 and self.adobe_transform != 0
        return self.precision == 8 and self.frame <= 2 and (self.components == 1 or ycc)


def read_header(data: bytes) -> JpegHeader | None:
    """Read the markers up to the first scan; None where they make no sense."""
    place, end = 2, len(data)
    exif, icc_parts, adobe = b"", {}, None
    size: tuple[int, int, int, int, int] | None = None
    while place + 4 <= end:
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF or marker in _STANDALONE:
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        body = place + 4
        if length < 2 or body + length - 2 > end:
            return None
        stop = body + length - 2
        if marker == 0xDA:
            break
        if marker in _FRAMES:
            if size is not None or length < 8:
                return None
            precision, height, width, parts = struct.unpack_from(">BHHB", data, body)
            size = (width, height, parts, precision, marker & 0xF)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", body) and not exif:
            exif = data[body + 6 : stop]
        elif marker == 0xE2 and data.startswith(b"ICC_PROFILE\0", body) and length > 16:
            icc_parts[data[body + 12]] = data[body + 14 : stop]
        elif marker == 0xEE and data.startswith(b"Adobe", body) and length >= 14:
            adobe = data[body + 11]
        place = stop
    if size is None or not size[0] or not size[1]:
        return None
    icc = b"".join(icc_parts[number] for number in sorted(icc_parts))
    return JpegHeader(*size, exif=exif, icc=icc, adobe_transform=adobe)


def count_scans(data: bytes) -> int:
    """Count start-of-scan markers. Entropy-coded data holds no FF DA, thumbnails in EXIF may."""
    return data.count(b"\xff\xda")


def decode_fast(
    data: bytes, header: JpegHeader, target_wh: tuple[int, int] | None, *, turned: bool = False
) -> NDArray[np.uint8]:
    """Decode to RGB uint8 HWC as stored (no orientation, no ICC).

    With `target_wh`, the size as stored that the caller will shrink to, at 1/8, 1/4 or 1/2 where
    that stays OVERSIZE times as large on both sides; sizes are rounded up, and for a picture that
    will be `turned` only a scale that needs no rounding is taken. Raises ValueError on any
    libjpeg warning. A file that lacks nothing but its end marker is whole: where pixels are missing
    libjpeg warns, marker or not, but for those of a progressive file's later scans.
    """
    if header.frame < 2 and not data.endswith(_END):
        data += _END
    size = header.width, header.height
    eighths = 8 if target_wh is None else _scale(size, target_wh, turned)
    image: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        "RGB",
        fastdct=False,
        fastupsample=False,
        min_width=0 if eighths == 8 else -(-size[0] * eighths // 8),
        min_height=0 if eighths == 8 else -(-size[1] * eighths // 8),
        min_factor=1 if eighths == 8 else 8 // eighths,
    )
    return image


def _scale(size: tuple[int, int], target: tuple[int, int], turned: bool) -> int:
    """The smallest DCT scale, in eighths, that is large enough for `target`; 8 is the whole."""
    for eighths in _SCALES:
        scaled = [edge * eighths / 8 for edge in size]
        enough = all(edge >= OVERSIZE * to for edge, to in zip(scaled, target, strict=True))
        whole = all(edge.is_integer() for edge in scaled)
        if enough and min(scaled) >= MIN_SCALED_EDGE and (whole or not turned):
            return eighths
    return 8


def exif_orientation(exif: bytes) -> int:
    """The orientation tag of a TIFF-structured EXIF block, 1 where it is absent or odd."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (place,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, place)
        for number in range(entries):
            tag, kind, count = struct.unpack_from(order + "HHI", exif, place + 2 + 12 * number)
            if tag == 0x0112:
                if kind != 3 or count != 1:
                    return 1
                (value,) = struct.unpack_from(order + "H", exif, place + 10 + 12 * number)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def orient(image_HWC: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels as an EXIF orientation (1 to 8) says, so that the scene stands upright."""
    if orientation in (2, 3):
        image_HWC = image_HWC[:, ::-1]
    if orientation in (3, 4):
        image_HWC = image_HWC[::-1]
    if orientation in (5, 6, 7, 8):
        image_HWC = image_HWC.swapaxes(0, 1)
        if orientation in (6, 7):
            image_HWC = image_HWC[:, ::-1]
        if orientation in (7, 8):
            image_HWC = image_HWC[::-1]
    return np.ascontiguousarray(image_HWC)
