"""How pictures can be resized and encoded, by name: apart from OpenCV, which takes long to load."""

from typing import Literal

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
Filter = Literal["nearest", "linear", "cubic", "area", "lanczos"]
EncodeFormat = Literal["jpg", "png", "webp"]
