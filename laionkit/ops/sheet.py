"""Contact sheets: pictures with a score and a caption under each, as one RGB picture.

The face is the one that Pillow carries, so that a sheet looks the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

PAPER: Color = (246, 246, 243)
CARD: Color = (255, 255, 255)
EDGE: Color = (224, 224, 219)
MAT: Color = (235, 235, 231)
INK: Color = (32, 33, 36)
FAINT: Color = (122, 124, 128)
ACCENT: Color = (15, 98, 140)

_MARGIN, _GAP, _PAD, _RADIUS = 28, 18, 12, 8
_LINES = 2


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: RGB [H, W, 3] or None where it is not at hand, score, caption."""

    image_HWC: NDArray[np.uint8] | None
    score: str
    caption: str


def contact_sheet(
    tiles: Sequence[Tile], title: str, note: str = "", *, columns: int = 5, edge_px: int = 220
) -> NDArray[np.uint8]:
    """Lay tiles out in rows under a title: RGB [H, W, 3].

    `note` stands small below the title; `edge_px` is the side of the square each picture fits.
    """
    columns = max(1, min(columns, len(tiles) or 1))
    rows = -(-len(tiles) // columns)
    card = (edge_px + 2 * _PAD, edge_px + 2 * _PAD + 30 + _LINES * 18)
    width = max(2 * _MARGIN + columns * (card[0] + _GAP) - _GAP, 480)
    head = 66 if note else 46
    height = _MARGIN + head + max(rows * (card[1] + _GAP) - _GAP, 40) + _MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_MARGIN, _MARGIN - 6), title, 24, INK, width - 2 * _MARGIN)
    _write(draw, (_MARGIN, _MARGIN + 28), note, 14, FAINT, width - 2 * _MARGIN)
    if not tiles:
        _write(draw, (_MARGIN, _MARGIN + head), "No hits.", 16, FAINT, width - 2 * _MARGIN)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        corner = (_MARGIN + column * (card[0] + _GAP), _MARGIN + head + row * (card[1] + _GAP))
        _draw_tile(sheet, draw, tile, place + 1, corner, card, edge_px)
    return np.asarray(sheet)


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    tile: Tile,
    rank: int,
    corner: tuple[int, int],
    card: tuple[int, int],
    edge_px: int,
) -> None:
    x, y = corner
    box = (x, y, x + card[0] - 1, y + card[1] - 1)
    draw.rounded_rectangle(box, _RADIUS, fill=CARD, outline=EDGE)
    frame = (x + _PAD, y + _PAD)
    mat = (*frame, frame[0] + edge_px - 1, frame[1] + edge_px - 1)
    draw.rectangle(mat, fill=MAT)
    if tile.image_HWC is None:
        text = "no picture at hand"
        start = frame[0] + (edge_px - _font(13).getlength(text)) / 2
        draw.text((start, frame[1] + edge_px / 2 - 8), text, FAINT, _font(13))
    else:
        _paste(sheet, tile.image_HWC, frame, edge_px)
    below = frame[1] + edge_px + 8
    _write(draw, (frame[0], below), tile.score, 17, ACCENT, edge_px - 40)
    number = f"{rank}"
    at = frame[0] + edge_px - _font(13).getlength(number)
    draw.text((at, below + 3), number, FAINT, _font(13))
    for line, text in enumerate(wrap(tile.caption, 13, edge_px, _LINES)):
        draw.text((frame[0], below + 25 + 18 * line), text, INK, _font(13))


def _paste(
    sheet: Image.Image, image_HWC: NDArray[np.uint8], frame: tuple[int, int], edge_px: int
) -> None:
    """Fit a picture into its square, whole; a small one is enlarged."""
    picture = Image.fromarray(image_HWC)
    scale = edge_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(picture, (frame[0] + (edge_px - size[0]) // 2, frame[1] + (edge_px - size[1]) // 2))


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    color: Color,
    width: int,
) -> None:
    for line in wrap(text, size, width, 1):
        draw.text(at, line, color, _font(size))


def wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """Break a text into at most `lines` lines of `width` pixels; what is cut ends in an ellipsis.

    Words are kept whole unless one alone is too wide.
    """
    font = _font(size)
    words = " ".join(text[:400].split()).split(" ")
    found: list[str] = []
    while words and words[0] and len(found) < lines:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        cut = bool(words) and len(found) == lines - 1
        if cut or font.getlength(line) > width:
            line = _shorten(line, font, width)
        found.append(line)
    return found


def _shorten(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line.rstrip()}…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
