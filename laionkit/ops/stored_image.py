"""One body to one stored image: hashes, blocklist, decode, filters, blur, resize, encode.

It runs in processes of its own (backends/isolation.py), so nothing here may load arrow or aiohttp.
"""

import hashlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from laionkit.core.reasons import Reason
from laionkit.ops.blur import blur_boxes
from laionkit.ops.hashes import hamming, phash
from laionkit.ops.images import Limits, Picture, PictureError, decode
from laionkit.ops.resize import EncodeFormat, Resize, encode, frame, scale
from laionkit.ops.strip import strip

_EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
MAX_EXIF_CHARS = 65_536


@dataclass(slots=True)
class Found:
    """What became of one link: the columns that fetch adds, `image` where there is one.

    `bytes_in` and `asked_s` (seconds of all requests for it) are for the shard's record.
    """

    reason: Reason | None = None
    message: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    sha256: str | None = None
    md5: str | None = None
    phash: str | None = None
    opt_out: str | None = None
    image: bytes | None = None
    bytes_in: int = 0
    asked_s: float = 0.0


@dataclass(frozen=True)
class ImageMaker:
    """Everything that turns a body into an image; the fields are those of FetchConfig.

    Instances are functions (body, (expected hash, boxes)) → (columns found, image), as
    backends/isolation.py runs them.
    """

    how: Resize = field(default_factory=Resize)
    limits: Limits = field(default_factory=Limits)
    encode_format: EncodeFormat = "jpg"
    encode_quality: int = 95
    skip_reencode: bool = False
    min_bytes: int = 0
    extract_exif: bool = False
    compute_md5: bool = False
    compute_phash: bool = False
    verify_hash: str = "no"
    verify_distance: int = 8
    blocked: frozenset[str] = field(default_factory=frozenset)

    def __call__(self, data: bytes, asked: Any) -> tuple[dict[str, Any], bytes | None]:
        """`make`, in terms that JSON can say."""
        expected, boxes = asked
        found = self.make(data, expected, boxes)
        image, found.image = found.image, None
        columns = {name: getattr(found, name) for name in Found.__slots__}
        return {name: value for name, value in columns.items() if value is not None}, image

    def make(self, data: bytes, expected: str | None = None, boxes: Any = None) -> Found:
        """Turn a body into an image, or into the reason why there is none. Never raises."""
        found = Found(bytes_in=len(data))
        try:
            self._make(data, expected, boxes, found)
        except PictureError as error:
            found.reason, found.message, found.image = error.reason, error.detail, None
        except Exception as error:  # noqa: BLE001 - hostile bytes: whatever they provoke is a row
            said = f"{type(error).__name__}: {error}"[:300]
            found.reason, found.message, found.image = Reason.DECODE_FAILED, said, None
        return found

    def _make(self, data: bytes, expected: str | None, boxes: Any, found: Found) -> None:
        found.sha256 = hashlib.sha256(data).hexdigest()
        md5 = None
        if self.compute_md5 or self.verify_hash == "md5" or self.blocked:
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            found.md5 = md5 if self.compute_md5 else None
        if found.sha256 in self.blocked or md5 in self.blocked:
            raise PictureError(Reason.CONTENT_BLOCKED, "its hash is in the blocklist")
        if len(data) < self.min_bytes:
            raise PictureError(Reason.TOO_FEW_BYTES, f"{len(data)} bytes")
        if self.verify_hash in ("sha256", "md5"):
            self._verify(found.sha256 if self.verify_hash == "sha256" else md5, expected)
        coarse = self.how.scaled if self.how.down == "area" and self.how.mode != "no" else None
        picture = decode(data, self.limits, shrink_to=coarse)
        size = picture.original_width, picture.original_height
        found.original_width, found.original_height = size
        if self.compute_phash or self.verify_hash == "phash":
            seen = phash(picture.rgb)
            found.phash = seen if self.compute_phash else None
            if self.verify_hash == "phash":
                self._verify_near(seen, expected)
        if self.extract_exif:
            found.exif = exif_json(picture.exif)
        found.image, (found.width, found.height) = self._image(data, picture, boxes)

    def _verify(self, seen: str | None, expected: str | None) -> None:
        if expected and seen != str(expected).strip().lower():
            raise PictureError(Reason.HASH_MISMATCH, f"{self.verify_hash} is {seen}")

    def _verify_near(self, seen: str, expected: str | None) -> None:
        if expected and (bits := hamming(seen, expected)) > self.verify_distance:
            raise PictureError(Reason.HASH_MISMATCH, f"phash differs in {bits} of 64 bits")

    def _image(self, data: bytes, picture: Picture, boxes: Any) -> tuple[bytes, tuple[int, int]]:
        how = self.how
        size = picture.original_width, picture.original_height
        own = _EXTENSIONS.get(picture.format) == self.encode_format and picture.is_plain
        if self.skip_reencode and own and not boxes and not how.applies(size):
            bare = strip(data, picture.format)
            if bare is not None:
                return bare, size
        rgb = scale(picture.rgb, how, size)
        if boxes:
            rgb = blur_boxes(rgb, boxes)
        rgb = frame(rgb, how, size)
        image = encode(rgb, self.encode_format, self.encode_quality)
        return image, (rgb.shape[1], rgb.shape[0])


def exif_json(exif: bytes) -> str | None:
    """An EXIF block as JSON of names and texts; None where there is none.

    Names and fractions are those of exifread, which img2dataset uses (``EXIF ExposureTime``:
    ``1/60``); numbers that stand for words stay numbers.
    """
    if not exif:
        return None
    try:
        tags = Image.Exif()
        tags.load(b"Exif\0\0" + exif)
        parts = (
            ("Image", ExifTags.TAGS, tags),
            ("EXIF", ExifTags.TAGS, tags.get_ifd(ExifTags.IFD.Exif)),
            ("GPS", ExifTags.GPSTAGS, tags.get_ifd(ExifTags.IFD.GPSInfo)),
        )
        named = {
            f"{part} {names.get(tag, tag)}": _text(value)
            for part, names, values in parts
            for tag, value in values.items()
        }
    except Exception:  # noqa: BLE001 - hostile bytes: a broken block must not cost the picture
        return None
    text = json.dumps(named, sort_keys=True)
    return text if named and len(text) <= MAX_EXIF_CHARS else None


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode() if value.isalnum() else value[:64].hex()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value[:64]))}]"
    if isinstance(value, IFDRational):
        top, bottom = int(value.numerator), int(value.denominator)
        return str(Fraction(top, bottom)) if bottom else f"{top}/0"
    return str(value).replace("\0", "").strip()[:1024]
