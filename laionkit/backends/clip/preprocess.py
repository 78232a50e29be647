"""The picture half of a CLIP model's preprocessing, equal to open_clip's own.

open_clip resizes with Pillow (bicubic or bilinear, antialiased, 8 bits a channel), crops or pads,
then normalises in float. Here the first two give uint8 [S, S, 3]; the model normalises on its
device. Source: open_clip/transform.py, image_transform.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its pictures; the fields are open_clip's PreprocessCfg."""

    height_px: int
    width_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    fill_color: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocess":
        """Read open_clip's own config, as a model's `visual.preprocess_cfg` holds it."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
        # open_clip evaluates with bicubic whatever is not bilinear ("random" is for training), and
        # leaves the setting out where it brings the shortest edge to a frame that is no square
        mode = config["resize_mode"] or "shortest"
        linear = config["interpolation"] == "bilinear" and (mode != "shortest" or height == width)
        return cls(
            height_px=int(height),
            width_px=int(width),
            mean=_three(config["mean"]),
            std=_three(config["std"]),
            interpolation="bilinear" if linear else "bicubic",
            resize_mode=mode,
            fill_color=int(config.get("fill_color") or 0),
        )

    def facts(self) -> dict[str, Any]:
        """What a record says of the preprocessing, as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Preprocess":
        """Read back what `facts` gave."""
        values: dict[str, Any] = dict(facts)
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def __call__(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring an RGB picture of any size to uint8 [height_px, width_px, 3]."""
        height, width = image_HWC.shape[:2]
        new_height, new_width = self._resized(height, width)
        picture = Image.fromarray(image_HWC)
        if (new_height, new_width) != (height, width):
            method = getattr(Image.Resampling, self.interpolation.upper())
            picture = picture.resize((new_width, new_height), method)
        if (new_height, new_width) == (self.height_px, self.width_px):
            return np.asarray(picture)
        return self._crop_or_pad(np.asarray(picture))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The size before crop or padding, rounded as torchvision and timm round it."""
        if self.resize_mode == "squash":
            return self.height_px, self.width_px
        if self.resize_mode == "shortest" and self.height_px == self.width_px:
            edge = self.height_px
            if width <= height:
                return int(edge * height / width), edge
            return edge, int(edge * width / height)
        ratios = height / self.height_px, width / self.width_px
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def _crop_or_pad(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Centre the picture in the frame: padding first, then the crop."""
        height, width = image_HWC.shape[:2]
        more_y, more_x = max(0, self.height_px - height), max(0, self.width_px - width)
        if more_y or more_x:
            sides = ((more_y // 2, (more_y + 1) // 2), (more_x // 2, (more_x + 1) // 2), (0, 0))
            image_HWC = np.pad(image_HWC, sides, constant_values=self.fill_color)
            height, width = image_HWC.shape[:2]
        top = round((height - self.height_px) / 2.0)
        left = round((width - self.width_px) / 2.0)
        return image_HWC[top : top + self.height_px, left : left + self.width_px]


def _three(values: Any) -> tuple[float, ...]:
    """A mean or deviation for each channel; one number stands for all three."""
    return tuple(map(float, values)) if isinstance(values, list | tuple) else (float(values),) * 3
