"""Contact sheets: every tile in its place, text that fits."""

import numpy as np
import pytest

from laionkit.ops.sheet import ACCENT, MAT, Tile, contact_sheet, wrap


def solid(color, height=90, width=90):
    return np.full((height, width, 3), color, np.uint8)


def has(image, color) -> bool:
    return bool((np.abs(image.astype(int) - color).max(axis=2) <= 3).any())


@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_picture_is_shown(count):
    colors = [(40 * i % 256, 255 - 30 * i, 17 * i) for i in range(count)]
    sheet = contact_sheet([Tile(solid(c), "0.3", "a") for c in colors], "q", columns=3)
    assert all(has(sheet, color) for color in colors)
    assert has(sheet, ACCENT)


def test_a_wide_picture_is_whole_on_its_mat():
    wide = np.concatenate([solid((255, 0, 0), 40, 100), solid((0, 0, 255), 40, 100)], axis=1)
    sheet = contact_sheet([Tile(wide, "0.3", "a")], "q")
    assert has(sheet, (255, 0, 0))
    assert has(sheet, (0, 0, 255))
    assert has(sheet, MAT)


def test_no_hits_and_no_picture_still_make_a_sheet():
    assert contact_sheet([], "q").shape[2] == 3
    assert has(contact_sheet([Tile(None, "0.3", "lost")], "q", "1 of 1"), MAT)


def test_text_is_cut_to_its_lines_with_an_ellipsis():
    lines = wrap("one two three four five six seven eight nine ten " * 9, 13, 120, 2)
    assert len(lines) == 2
    assert lines[1].endswith("…")
    assert wrap("x" * 500, 13, 100, 2)[0].endswith("…")
    assert wrap("", 13, 100, 2) == []
    assert wrap("short", 13, 100, 2) == ["short"]
