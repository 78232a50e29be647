"""Bitmaps over a segment's rows: bit r of byte r // 8, lowest first, as faiss reads them."""

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import Bitmap


def from_mask(mask_N: NDArray[np.bool_]) -> Bitmap:
    """Pack one bool a row."""
    return np.packbits(mask_N, bitorder="little")


def count(bits: Bitmap) -> int:
    """How many rows are kept."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def before(bits: Bitmap, rows_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows are kept before each of some."""
    padded = np.append(bits, np.uint8(0))  # the last row may be a byte's end
    whole = np.cumsum(np.bitwise_count(padded), dtype=np.int64) - np.bitwise_count(padded)
    byte, bit = rows_M // 8, (rows_M % 8).astype(np.uint8)
    return whole[byte] + np.bitwise_count(padded[byte] & ((np.uint8(1) << bit) - np.uint8(1)))


def rows_of(bits: Bitmap, rows: int) -> NDArray[np.int64]:
    """The rows kept, in order."""
    return np.flatnonzero(np.unpackbits(bits, count=rows, bitorder="little"))


def alive(dead: Bitmap, rows: int) -> Bitmap:
    """The rows that are not dead."""
    bits = ~dead
    if rows % 8:
        bits[-1] &= (1 << rows % 8) - 1
    return bits
