"""Captioned pictures drawn from a random generator: shapes on grounds.

They stand in for photographs where none can be fetched: `laionkit demo` serves them, and the
built-in `tiny` CLIP was trained on them. A `Scene` is all of a picture but its size in pixels, so
that one scene looks the same at 64 px and at 600 px.
"""

from laionkit.ops.pictures._captions import caption, full_caption, unseen_singles
from laionkit.ops.pictures._drawing import Picture, draw
from laionkit.ops.pictures._scenes import Scene, Thing, random_scene, relatives
from laionkit.ops.pictures._words import (
    COLOURS,
    GROUNDS,
    KINDS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    held_out,
    stands_out,
)

__all__ = [
    "COLOURS",
    "GROUNDS",
    "KINDS",
    "PLACES",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "Picture",
    "Scene",
    "Thing",
    "caption",
    "draw",
    "full_caption",
    "held_out",
    "random_scene",
    "relatives",
    "stands_out",
    "unseen_singles",
]
