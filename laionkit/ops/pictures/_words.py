"""The words of drawn pictures and what each of them looks like; which pairs training leaves out."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from laionkit.ops.pictures._outlines import OUTLINES

Rgb: TypeAlias = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (214, 36, 38),
    "orange": (255, 138, 0),
    "yellow": (250, 218, 30),
    "green": (36, 158, 56),
    "cyan": (50, 208, 216),
    "blue": (36, 76, 214),
    "purple": (128, 48, 172),
    "pink": (255, 148, 192),
    "brown": (122, 70, 34),
    "black": (24, 24, 27),
    "white": (247, 247, 247),
    "gray": (134, 137, 141),
}
SHAPES: tuple[str, ...] = tuple(OUTLINES)
SIZES: dict[str, float] = {"small": 0.14, "medium": 0.21, "large": 0.31}
TEXTURES: tuple[str, ...] = ("solid", "striped", "dotted", "checkered")
PLACES: dict[str, tuple[int, int]] = {
    "center": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
}
COUNTS: dict[int, str] = {2: "two", 3: "three", 4: "four"}
KINDS: tuple[str, ...] = ("single", "group", "pair")

_MIN_CONTRAST = 80.0


@dataclass(frozen=True)
class Ground:
    """What lies behind the things: two colours, a grain, and ruled lines or specks."""

    top: Rgb
    bottom: Rgb
    grain: tuple[int, int]
    """Rows and columns of the noise lattice that is stretched over the picture."""
    contrast: float
    """Half the grain's range, in grey levels."""
    rows: int = 0
    columns: int = 0
    specks: int = 0


GROUNDS: dict[str, Ground] = {
    "paper": Ground((240, 236, 226), (232, 228, 216), (48, 48), 5),
    "sand": Ground((226, 202, 152), (212, 184, 132), (64, 64), 22),
    "grass": Ground((104, 152, 76), (84, 130, 58), (14, 64), 30),
    "sky": Ground((104, 162, 226), (186, 216, 240), (4, 3), 14),
    "night": Ground((14, 16, 44), (34, 36, 76), (4, 4), 6, specks=26),
    "tiles": Ground((204, 214, 212), (192, 204, 202), (24, 24), 6, rows=5, columns=5),
    "wood": Ground((186, 132, 80), (170, 116, 66), (40, 3), 20, rows=4),
    "water": Ground((40, 128, 152), (22, 92, 122), (22, 5), 26),
}


def held_out(colour: str, shape: str) -> bool:
    """True for the 24 of 168 (colour, shape) pairs that training never draws.

    Every colour lacks two shapes and every shape at least one colour, so that each word is
    learnt, and each is tested in company it was never seen in.
    """
    return (3 * list(COLOURS).index(colour) + SHAPES.index(shape)) % 7 == 0


def stands_out(colour: str, ground: str) -> bool:
    """True where a thing of this colour can be seen on this ground."""
    paint = np.array(COLOURS[colour], dtype=np.float64)
    ends = np.array([GROUNDS[ground].top, GROUNDS[ground].bottom], dtype=np.float64)
    return float(np.linalg.norm(ends - paint, axis=1).min()) >= _MIN_CONTRAST
