"""The rows of one segment that a filter keeps, and what a search asks of them, worked out once."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import Bitmap, ListCopy
from laionkit.search import bits
from laionkit.search.foreign import AnySegment
from laionkit.search.planner import SPARSE


class Keep:
    """A bitmap over a segment's rows; a cached filter keeps its counts and rows with it."""

    def __init__(self, bitmap: Bitmap) -> None:
        """Wrap a bitmap: bit r of byte r // 8, lowest first."""
        self.bitmap = bitmap
        self.asked = 0
        self.copy: NDArray[np.uint8] | ListCopy | None = None  # of its rows, see copies.py
        self._offsets: NDArray[np.int64] | None = None

    @cached_property
    def count(self) -> int:
        """How many rows are kept."""
        return bits.count(self.bitmap)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The rows kept, in order: eight bytes each, so for narrow filters alone."""
        return bits.rows_of(self.bitmap, 8 * len(self.bitmap))

    def offsets(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many rows kept lie before each list and after the last; `starts` are the lists'."""
        if self._offsets is None:
            self._offsets = bits.before(self.bitmap, starts)
        return self._offsets

    def rows_of_lists(
        self, starts: NDArray[np.int64], lists: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The rows kept of some lists, in order where the lists are."""
        offsets = self.offsets(starts)
        first, sizes = offsets[lists], offsets[lists + 1] - offsets[lists]
        before = np.cumsum(sizes) - sizes
        return self.rows[np.repeat(first - before, sizes) + np.arange(int(sizes.sum()))]

    def prepare(self, starts: NDArray[np.int64] | None) -> None:
        """Work out what a search will ask for, of a segment whose lists begin at `starts`."""
        narrow = self.count < SPARSE * 8 * len(self.bitmap)
        if narrow:
            _ = self.rows
        if starts is not None:
            self.offsets(starts)

    def __and__(self, other: "Keep") -> "Keep":
        """The rows that another filter keeps too."""
        return Keep(self.bitmap & other.bitmap)


def prepare(segments: Sequence[AnySegment], keeps: Sequence[Keep | None]) -> None:
    """Work out ahead what searches of these segments ask of one filter each."""
    for segment, keep in zip(segments, keeps, strict=True):
        if keep is not None:
            keep.prepare(None if segment.lists is None else segment.lists.starts)
