"""Bitmaps: what is counted of them is what the mask says."""

import numpy as np
import pytest

from laionkit.search import bits


@pytest.mark.parametrize("rows", [1, 8, 1000, 1003])
def test_rows_kept_before_some_are_counted_whatever_their_place_in_a_byte(rows):
    mask = np.random.default_rng(rows).random(rows) < 0.3
    counted = np.concatenate([[0], np.cumsum(mask)])
    assert bits.before(bits.from_mask(mask), np.arange(rows + 1)).tolist() == counted.tolist()
