"""One body to one stored image: hashes, blocklist, decode, filters, blur, resize, encode."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from PIL import ExifTags, Image

from laionkit.core.schemas import Reason
from laionkit.ops.blur import blur_boxes
from laionkit.ops.hashes import hamming, phash
from laionkit.ops.images import Picture, PictureError, decode
from laionkit.ops.resize import encode, frame, scale
from laionkit.stages.fetch.config import FetchConfig

_EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
MAX_EXIF_CHARS = 65_536


@dataclass(slots=True)
class Found:
    """What became of one link: the columns that fetch adds, `image` where there is one."""

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


@dataclass(frozen=True)
class Recipe:
    """Everything that turns a body into an image. Picklable: isolated decoders get it too."""

    config: FetchConfig
    blocked: frozenset[str] = field(default_factory=frozenset)

    def make(self, data: bytes, expected: str | None, boxes: Any) -> Found:
        """Turn a body into an image, or into the reason why there is none. Never raises."""
        found = Found(bytes_in=len(data))
        try:
            self._make(data, expected, boxes, found)
        except PictureError as error:
            found.reason, found.message, found.image = error.reason, error.detail, None
        return found

    def _make(self, data: bytes, expected: str | None, boxes: Any, found: Found) -> None:
        config = self.config
        found.sha256 = hashlib.sha256(data).hexdigest()
        md5 = None
        if config.compute_md5 or config.verify_hash == "md5" or self.blocked:
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            found.md5 = md5 if config.compute_md5 else None
        if found.sha256 in self.blocked or md5 in self.blocked:
            raise PictureError(Reason.CONTENT_BLOCKED, "its hash is in the blocklist")
        if len(data) < config.min_bytes:
            raise PictureError(Reason.TOO_FEW_BYTES, f"{len(data)} bytes")
        if config.verify_hash in ("sha256", "md5"):
            self._verify(found.sha256 if config.verify_hash == "sha256" else md5, expected)
        limits, how = config.limits, config.how
        coarse = how.scaled if how.down == "area" and how.mode != "no" else None
        picture = decode(data, limits, shrink_to=coarse)
        size = picture.original_width, picture.original_height
        found.original_width, found.original_height = size
        if config.compute_phash or config.verify_hash == "phash":
            seen = phash(picture.rgb)
            found.phash = seen if config.compute_phash else None
            if config.verify_hash == "phash":
                self._verify_near(seen, expected)
        if config.extract_exif:
            found.exif = exif_json(picture.exif)
        found.image, (found.width, found.height) = self._image(data, picture, boxes)

    def _verify(self, seen: str | None, expected: str | None) -> None:
        if expected and seen != expected.strip().lower():
            raise PictureError(Reason.HASH_MISMATCH, f"{self.config.verify_hash} is {seen}")

    def _verify_near(self, seen: str, expected: str | None) -> None:
        if expected and (bits := hamming(seen, expected)) > self.config.verify_distance:
            raise PictureError(Reason.HASH_MISMATCH, f"phash differs in {bits} of 64 bits")

    def _image(self, data: bytes, picture: Picture, boxes: Any) -> tuple[bytes, tuple[int, int]]:
        config, how = self.config, self.config.how
        size = picture.original_width, picture.original_height
        own = _EXTENSIONS.get(picture.format) == config.encode_format and picture.is_plain
        if config.skip_reencode and own and not boxes and not how.applies(size):
            return data, size
        rgb = scale(picture.rgb, how, size)
        if boxes:
            rgb = blur_boxes(rgb, boxes)
        rgb = frame(rgb, how, size)
        image = encode(rgb, config.encode_format, config.encode_quality)
        return image, (rgb.shape[1], rgb.shape[0])


def exif_json(exif: bytes) -> str | None:
    """An EXIF block as JSON of tag names and texts, as img2dataset stores it; None where none."""
    if not exif:
        return None
    try:
        tags = Image.Exif()
        tags.load(b"Exif\0\0" + exif)
        pairs = [*tags.items(), *tags.get_ifd(ExifTags.IFD.Exif).items()]
        gps = tags.get_ifd(ExifTags.IFD.GPSInfo)
        named = {f"Image {ExifTags.TAGS.get(tag, tag)}": _text(value) for tag, value in pairs}
        named |= {f"GPS {ExifTags.GPSTAGS.get(tag, tag)}": _text(v) for tag, v in gps.items()}
    except Exception:  # noqa: BLE001 - hostile bytes: a broken block must not cost the picture
        return None
    text = json.dumps(named, sort_keys=True)
    return text if named and len(text) <= MAX_EXIF_CHARS else None


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value[:64].hex()
    return str(value).replace("\0", "").strip()[:1024]
