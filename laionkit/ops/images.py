"""Pictures from bytes that nobody vouches for: sniffed, judged by their header, then decoded.

JPEGs go through libjpeg-turbo directly; everything else, and every JPEG with anything odd about
it, through Pillow. Whatever a decoder raises becomes a PictureError with a reason of our list.
"""

import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from laionkit.core.reasons import Reason
from laionkit.ops import jpeg
from laionkit.ops.color import array_to_srgb, to_rgb

# What Pillow warns of in a broken picture becomes a reason here.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow's own limit, and LAION's: a quarter of a GiB of RGB.
MAX_PIXELS = 89_478_484
FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heic")

Size = tuple[int, int]


class PictureError(Exception):
    """No picture was had of these bytes: why, from the closed list, and what the decoder said."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Limits:
    """What a header may say. Sides and area are those of the upright picture; 0 means no limit.

    `min_edge_px` bounds the shorter side, `max_aspect` the longer side over the shorter.
    """

    max_pixels: int = MAX_PIXELS
    min_edge_px: int = 0
    max_aspect: float = 0.0
    formats: tuple[str, ...] = FORMATS


@dataclass(frozen=True)
class Picture:
    """An upright sRGB picture. `rgb` may be smaller than the original (see `decode`).

    `exif` is the raw TIFF-structured block, empty where there is none; `is_plain` says that the
    original bytes show the same picture to any reader (no turn, no profile, no alpha).
    """

    rgb: NDArray[np.uint8]
    format: str
    original_width: int
    original_height: int
    exif: bytes = field(default=b"", repr=False)
    is_plain: bool = False


def sniff(data: bytes) -> str | None:
    """The format that the first bytes announce, whatever the server said; None where none does."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data[:2] == b"BM" and len(data) >= 26:
        return "bmp"
    if data[4:8] == b"ftyp":
        brands = data[8:12], *(data[i : i + 4] for i in range(16, min(len(data), 64), 4))
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        if set(brands) & {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}:
            return "heic"
    return None


def decode(
    data: bytes,
    limits: Limits = Limits(),
    *,
    shrink_to: Callable[[Size], Size] | None = None,
) -> Picture:
    """Decode hostile bytes to an upright sRGB picture, or raise PictureError with the reason.

    `shrink_to` maps the upright original (width, height) to the size the caller will scale to;
    a large JPEG is then decoded at a DCT scale that stays well above it (jpeg.OVERSIZE).
    """
    kind = sniff(data)
    if kind is None:
        raise PictureError(*_unknown(data))
    if kind not in limits.formats:
        raise PictureError(Reason.FORMAT_REFUSED, kind)
    if kind == "jpeg" and (picture := _decode_jpeg(data, limits, shrink_to)) is not None:
        return picture
    return _decode_pillow(data, kind, limits)


def read_size(data: bytes) -> tuple[str, int, int]:
    """Format, width and height as stored, from the header alone. Raises PictureError."""
    kind = sniff(data)
    if kind is None:
        raise PictureError(*_unknown(data))
    if kind == "jpeg" and (header := jpeg.read_header(data)) is not None:
        return kind, header.width, header.height
    with _open(data, kind) as image:
        return kind, *image.size


def check_size(size: Size, limits: Limits) -> None:
    """Raise PictureError where a (width, height), upright or not, is outside the limits."""
    width, height = size
    shown = f"{width}x{height}"
    if width * height > limits.max_pixels:
        raise PictureError(Reason.TOO_MANY_PIXELS, f"{shown} is over {limits.max_pixels} pixels")
    if min(size) < limits.min_edge_px:
        raise PictureError(Reason.TOO_SMALL, f"{shown} has a side below {limits.min_edge_px} px")
    if limits.max_aspect and max(size) > limits.max_aspect * min(size):
        raise PictureError(Reason.ASPECT_REFUSED, f"{shown} is over {limits.max_aspect:g}:1")


def _decode_jpeg(
    data: bytes, limits: Limits, shrink_to: Callable[[Size], Size] | None
) -> Picture | None:
    """The fast path; None where this file needs the tolerant one."""
    header = jpeg.read_header(data)
    if header is None or not header.is_plain:
        return None
    orientation = jpeg.exif_orientation(header.exif) if header.exif else 1
    turned = orientation >= 5
    size = (header.height, header.width) if turned else (header.width, header.height)
    check_size(size, limits)
    if header.frame == 2 and (scans := jpeg.count_scans(data)) > jpeg.MAX_SCANS:
        raise PictureError(Reason.DECODE_TIMEOUT, f"{scans} scans would take too long to decode")
    target = shrink_to(size) if shrink_to is not None else None
    if target is not None and turned:
        target = (target[1], target[0])
    try:
        rgb = jpeg.decode_fast(data, header, target, turned=orientation > 1)
    except ValueError:
        return None
    icc = header.icc if header.components == 3 else b""
    plain = orientation == 1 and not header.icc
    rgb = jpeg.orient(array_to_srgb(rgb, icc), orientation)
    return Picture(rgb, "jpeg", size[0], size[1], header.exif, plain)


def _decode_pillow(data: bytes, kind: str, limits: Limits) -> Picture:
    if kind == "jpeg" and (scans := jpeg.count_scans(data)) > jpeg.MAX_SCANS:
        raise PictureError(Reason.DECODE_TIMEOUT, f"{scans} scans would take too long to decode")
    with _open(data, kind) as image:
        check_size(image.size, limits)
        try:
            _load(image)
            turn = _TURNS.get(_orientation(image))
            plain = turn is None and image.mode in ("RGB", "L")
            plain = plain and not {"icc_profile", "transparency"} & image.info.keys()
            exif = image.info.get("exif", b"")
            rgb = to_rgb(image if turn is None else image.transpose(turn))
        except MemoryError as error:
            raise PictureError(Reason.TOO_MANY_PIXELS, "not enough memory") from error
        except Exception as error:
            raise PictureError(*_decode_reason(error)) from error
        array = np.asarray(rgb)
        height, width = array.shape[:2]
        exif = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
        return Picture(array, kind, width, height, exif, plain)


def _open(data: bytes, kind: str) -> Image.Image:
    """Let Pillow read the header, as the sniffed format only."""
    _enable_heic(kind)
    try:
        return Image.open(io.BytesIO(data), formats=[_PILLOW_NAMES.get(kind, kind.upper())])
    except Image.DecompressionBombError as error:
        raise PictureError(Reason.TOO_MANY_PIXELS, str(error)) from error
    except UnidentifiedImageError as error:
        raise PictureError(Reason.DECODE_FAILED, f"the {kind} header cannot be read") from error
    except Exception as error:
        raise PictureError(*_decode_reason(error)) from error


_PILLOW_NAMES = {"heic": "HEIF"}


def _enable_heic(kind: str) -> None:
    """Register the optional HEIC plugin when the first HEIC picture comes."""
    if kind != "heic" or "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError as error:
        hint = "HEIC needs the extra: pip install laionkit[heic]"
        raise PictureError(Reason.FORMAT_REFUSED, hint) from error
    pillow_heif.register_heif_opener()


def _load(image: Image.Image) -> None:
    """Decode the pixels; where all of them came, what stands behind them in a PNG may be broken."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError):
        if image.format != "PNG" or getattr(image, "tile", None):
            raise


# What sets a picture of that EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture: a PNG's may stand behind its pixels."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block must not cost the picture
        return 1
    return value if isinstance(value, int) else 1


def _decode_reason(error: Exception) -> tuple[Reason, str]:
    """Tell a file that was cut short from one that is broken otherwise."""
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, Image.DecompressionBombError):
        return Reason.TOO_MANY_PIXELS, detail
    words = str(error).lower()
    cut = isinstance(error, EOFError | struct.error) or "truncated" in words or "end of" in words
    return (Reason.TRUNCATED_IMAGE if cut else Reason.DECODE_FAILED), detail


def _unknown(data: bytes) -> tuple[Reason, str]:
    """The reason for bytes that are none of our formats: other pictures are named."""
    for magic, name in _OTHER_PICTURES:
        if data.startswith(magic):
            return Reason.FORMAT_REFUSED, name
    head = data[:512].lstrip().lower()
    if not data:
        return Reason.NOT_AN_IMAGE, "no bytes"
    if b"<svg" in head:
        return Reason.FORMAT_REFUSED, "svg"
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        return Reason.NOT_AN_IMAGE, "an HTML page"
    return Reason.NOT_AN_IMAGE, f"begins with {data[:8]!r}"


_OTHER_PICTURES = (
    (b"8BPS", "psd"),
    (b"\0\0\1\0", "ico"),
    (b"\0\0\0\x0cjP  ", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cJXL ", "jxl"),
    (b"P1", "pbm"),
    (b"P3", "ppm"),
    (b"P6", "ppm"),
    (b"qoif", "qoi"),
)
