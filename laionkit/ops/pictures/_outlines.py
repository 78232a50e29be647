"""Outlines of the drawn shapes: closed polygons within about one unit of the origin, y down.

Contours of one shape overlap by the even-odd rule, so that a ring is two circles. Arrays are
float64 [P, 2], P corners as (x, y).
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Outline: TypeAlias = NDArray[np.float64]


def _polygon(points: str) -> Outline:
    """Read corners written as SVG writes them: "x,y x,y ..."."""
    return np.array([point.split(",") for point in points.split()], dtype=np.float64)


def _polar(radius: NDArray[np.float64], start: float = -np.pi / 2) -> Outline:
    """Corners at equal angles, clockwise from the top, at the given distances."""
    angle = start + np.arange(len(radius)) * (2 * np.pi / len(radius))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]


def _circle(radius: float) -> Outline:
    return _polar(np.full(64, radius))


def _semicircle() -> Outline:
    """The upper half of a disc, moved down to stand about the origin."""
    angle = np.linspace(np.pi, 2 * np.pi, 33)
    return np.stack([np.cos(angle), np.sin(angle) + 0.48], axis=1) * 1.05


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1) / 15.5


def _crescent() -> Outline:
    """The part of a disc outside a second disc moved to the right."""
    outer = np.linspace(np.pi * 0.27, np.pi * 1.73, 48)
    tip = np.array([np.cos(outer[0]), np.sin(outer[0])])
    middle = 0.52
    inner_radius = float(np.hypot(tip[0] - middle, tip[1]))
    reach = float(np.arctan2(tip[1], tip[0] - middle))
    inner = np.linspace(2 * np.pi - reach, reach, 48)
    rim = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    bite = np.stack([middle + inner_radius * np.cos(inner), inner_radius * np.sin(inner)], axis=1)
    moon: Outline = np.concatenate([rim, bite]) + np.array([0.18, 0.0])
    return moon


def _flower() -> Outline:
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    return _polar(0.72 + 0.3 * np.cos(5 * angle))


OUTLINES: dict[str, tuple[Outline, ...]] = {
    "circle": (_circle(0.95),),
    "square": (_polygon("-.82,-.82 .82,-.82 .82,.82 -.82,.82"),),
    "triangle": (_polygon("0,-.95 1,.8 -1,.8"),),
    "diamond": (_polygon("0,-1.1 .75,0 0,1.1 -.75,0"),),
    "star": (_polar(np.tile([1.1, 0.45], 5)),),
    "heart": (_heart(),),
    "cross": (
        _polygon("-.3,-1 .3,-1 .3,-.3 1,-.3 1,.3 .3,.3 .3,1 -.3,1 -.3,.3 -1,.3 -1,-.3 -.3,-.3"),
    ),
    "ring": (_circle(1.0), _circle(0.55)),
    "crescent": (_crescent(),),
    "arrow": (_polygon("-1.1,-.3 .1,-.3 .1,-.85 1.1,0 .1,.85 .1,.3 -1.1,.3"),),
    "house": (_polygon("0,-1.05 1,-.2 .75,-.2 .75,.9 -.75,.9 -.75,-.2 -1,-.2"),),
    "flower": (_flower(),),
    "bolt": (_polygon(".25,-1.15 -.75,.15 -.1,.15 -.3,1.15 .75,-.25 .1,-.25 .6,-1.15"),),
    "semicircle": (_semicircle(),),
}
