"""Drawing: a scene as pixels of any size, without randomness but for the seed in the scene.

Shapes: H, W height and width in pixels. A picture is uint8 RGB [H, W, 3].
"""

import math
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from laionkit.ops.pictures._outlines import OUTLINES, Outline
from laionkit.ops.pictures._scenes import Scene, Thing
from laionkit.ops.pictures._words import GROUNDS, Ground, Rgb

Picture: TypeAlias = NDArray[np.uint8]

_SUBPIXEL_BITS = 4


def draw(scene: Scene, size_px: int | tuple[int, int]) -> Picture:
    """Draw the scene: uint8 RGB [H, W, 3], the same bytes for the same scene and size.

    `size_px` is the edge of a square, or (height, width): the things then keep to the middle
    square and the ground fills the rest.
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    picture = _draw_ground(scene, height, width)
    edge = min(height, width)
    origin = np.array([(width - edge) / 2, (height - edge) / 2])
    for thing in scene.things:
        _draw_thing(picture, thing, origin, edge)
    return picture


def _draw_ground(scene: Scene, height: int, width: int) -> Picture:
    ground = GROUNDS[scene.ground]
    rng = np.random.default_rng(scene.seed)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    top, bottom = (np.array(rgb, dtype=np.float32) for rgb in (ground.top, ground.bottom))
    # The lattice's size does not depend on the picture's, so the grain scales with the scene.
    lattice = rng.random(ground.grain, dtype=np.float32) * 2 - 1
    grain = cv2.resize(lattice, (width, height), interpolation=cv2.INTER_LINEAR)[:, :, None]
    shade = (top + (bottom - top) * down) * scene.light + grain * ground.contrast
    picture = np.clip(shade, 0, 255).astype(np.uint8)
    _rule(picture, ground, rng)
    return picture


def _rule(picture: Picture, ground: Ground, rng: np.random.Generator) -> None:
    """Add a ground's lines (grout, gaps between planks) and specks (stars), in place."""
    height, width = picture.shape[:2]
    edge = min(height, width)
    line = [int(0.72 * c) for c in ground.bottom]
    thick = max(1, round(edge / 90))
    shift = rng.random()
    for y in (np.arange(ground.rows) + shift) * height / max(1, ground.rows):
        cv2.line(picture, (0, round(y)), (width, round(y)), line, thick)
    for x in (np.arange(ground.columns) + shift) * width / max(1, ground.columns):
        cv2.line(picture, (round(x), 0), (round(x), height), line, thick)
    for x, y, r in rng.random((ground.specks, 3)).tolist():
        middle = (round(x * width), round(y * height))
        cv2.circle(picture, middle, round(edge * r / 110), (235, 235, 210), -1, cv2.LINE_AA)


def _draw_thing(picture: Picture, thing: Thing, origin: NDArray[np.float64], edge: int) -> None:
    """Paint one thing over the picture, in place, touching only its bounding box."""
    middle = origin + np.array([thing.x, thing.y]) * edge
    contours = [_turned(c, thing.angle) * (thing.radius * edge) for c in OUTLINES[thing.shape]]
    reach = math.ceil(1.3 * thing.radius * edge) + 1
    left, top = (max(0, int(c) - reach) for c in middle)
    box = picture[top : int(middle[1]) + reach, left : int(middle[0]) + reach]
    if box.size == 0:
        return
    offset = middle - (left, top)
    points = [np.round((c + offset) * (1 << _SUBPIXEL_BITS)).astype(np.int32) for c in contours]
    mask = np.zeros(box.shape[:2], dtype=np.uint8)
    cv2.fillPoly(mask, points, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    cover = mask.astype(np.float32)[:, :, None] / 255
    paint = _paint(thing, box.shape[0], box.shape[1], offset, edge)
    box[:] = np.round(box + (paint - box) * cover).astype(np.uint8)


def _paint(
    thing: Thing, height: int, width: int, offset: NDArray[np.float64], edge: int
) -> NDArray[np.float32]:
    """Colour of each pixel of the box, float32 [H, W, 3], or [1, 1, 3] for a solid thing."""
    first = np.array(thing.rgb, dtype=np.float32).reshape(1, 1, 3)
    if thing.texture == "solid":
        return first
    second = np.array(_companion(thing), dtype=np.float32).reshape(1, 1, 3)
    share = _texture(thing, height, width, offset, edge)[:, :, None]
    return first + (second - first) * share


def _texture(
    thing: Thing, height: int, width: int, offset: NDArray[np.float64], edge: int
) -> NDArray[np.float32]:
    """Share of the second colour at each pixel, 0 to 1, soft at the borders."""
    # A period that grows slower than the thing: few stripes on a small one, more on a large one.
    period = edge * (0.045 + 0.22 * thing.radius)
    scale = np.float32(2 * math.pi / period)
    x = (np.arange(width, dtype=np.float32)[None, :] - np.float32(offset[0])) * scale
    y = (np.arange(height, dtype=np.float32)[:, None] - np.float32(offset[1])) * scale
    if thing.texture == "striped":
        # Turned by an eighth of a circle, so that stripes are like no row of checks or dots.
        wave = np.sin((x + y) * np.float32(0.75)) - np.float32(0.15)
    elif thing.texture == "checkered":
        wave = np.sin(x / 2) * np.sin(y / 2) * 2
    else:
        wave = np.cos(x * np.float32(0.75)) + np.cos(y * np.float32(0.75)) - np.float32(0.75)
    sharpness = np.float32(max(1.0, period / 9))
    share: NDArray[np.float32] = np.clip(0.5 + wave * sharpness, 0, 1)
    return share


def _companion(thing: Thing) -> Rgb:
    """Second colour of a textured thing: paler, but darker for white and gray.

    Pale stripes on gray are the dark stripes on white to a model that sees 64 pixels.
    """
    red, green, blue = thing.rgb
    if thing.colour in ("white", "gray"):
        return (int(red * 0.6), int(green * 0.6), int(blue * 0.6))
    return (_paler(red), _paler(green), _paler(blue))


def _paler(level: int) -> int:
    return int(level + (255 - level) * 0.62)


def _turned(contour: Outline, angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Outline = contour @ np.array([[cos, sin], [-sin, cos]])
    return turned
