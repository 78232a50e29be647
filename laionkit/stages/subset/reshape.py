"""Pictures resized, cropped or re-encoded on their way into a subset, where that was asked for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from laionkit.ops.images import Picture, PictureError, decode
from laionkit.ops.resize import EncodeFormat, Resize, encode, frame, scale
from laionkit.stages.subset.config import SubsetConfig

_EXTENSIONS: dict[str, EncodeFormat] = {"jpeg": "jpg", "png": "png", "webp": "webp"}


@dataclass(frozen=True)
class Reshaped:
    """A picture as the subset stores it, with the sides that its JSON and its row then say."""

    extension: str
    image: bytes
    width: int
    height: int

    def restate(self, line: bytes) -> bytes:
        """KEY.json with the stored sides; the rest as it was."""
        row = json.loads(line)
        row.update(width=self.width, height=self.height)
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Reshape:
    """What is asked of every picture."""

    how: Resize
    encode_format: EncodeFormat | Literal["same"]
    quality: int

    @classmethod
    def of(cls, config: SubsetConfig) -> "Reshape | None":
        """What `config` asks; None where pictures are to be copied as they are."""
        if not config.reshapes:
            return None
        how = Resize(config.resize_mode, config.image_size, config.resize_only_if_bigger)
        return cls(how, config.encode_format, config.encode_quality)

    def apply(self, data: bytes, extension: str) -> Reshaped:
        """Bring one picture into form; its own bytes where that changes nothing.

        Raises PictureError where it is no usable picture.
        """
        coarse = self.how.scaled if self.how.mode != "no" else None
        picture = decode(data, shrink_to=coarse)
        size = picture.original_width, picture.original_height
        target = self._format(picture)
        if _EXTENSIONS.get(picture.format) == target and not self.how.applies(size):
            return Reshaped(extension, data, *size)
        rgb = frame(scale(picture.rgb, self.how, size), self.how, size)
        image = encode(rgb, target, self.quality)
        return Reshaped(target, image, rgb.shape[1], rgb.shape[0])

    def _format(self, picture: Picture) -> EncodeFormat:
        if self.encode_format != "same":
            return self.encode_format
        return _EXTENSIONS.get(picture.format, "jpg")


def restate_rows(rows: pa.Table, placed: Sequence[tuple[int, Reshaped | None]]) -> pa.Table:
    """The rows that were written, by their place in `rows`, with what is stored in each."""
    found = rows.take(pa.array([row for row, _ in placed], pa.int64()))
    stored = [shaped for _, shaped in placed if shaped is not None]
    for name in ("width", "height"):
        if name in found.column_names:
            place = found.schema.get_field_index(name)
            sides = pa.array(
                [getattr(shaped, name) for shaped in stored], found.schema.types[place]
            )
            found = found.set_column(place, found.schema.field(place), sides)
    place = found.schema.get_field_index("image_ext")
    extensions = pa.array([shaped.extension for shaped in stored], pa.string())
    return found.set_column(place, "image_ext", extensions)


__all__ = ["PictureError", "Reshape", "Reshaped", "restate_rows"]
