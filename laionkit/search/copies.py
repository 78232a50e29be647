"""Copies of the rows of narrow filters that are asked with again.

Rows far apart cost a trip to memory each, five times what it takes to score them in turn. So where
a filter that keeps few rows comes a second time its rows are copied. Of the narrowest the vectors
are, and from then on all of them are scored: an answer is then exact, at less than a probe takes
that looks at a third of them. Of others the codes are, by list, and these are probed.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import FlatStore, ListCopy, ListStore
from laionkit.search.keep import Keep

COPIED = 1 / 8  # the share of rows kept up to which a filter is copied
COPIES_BYTES = 256 * 2**20
_LARGEST = 2  # of the copies' bytes, one filter's are at most this part
_ASKED = 2  # times, until a filter is worth a copy


class Copies:
    """What was copied, the filter asked with last at the end; the first make room for others."""

    def __init__(self, most_bytes: int = COPIES_BYTES) -> None:
        """Keep at most so many bytes."""
        self._most = most_bytes
        self._kept: OrderedDict[weakref.ref[Keep], int] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self, keep: Keep, vectors: FlatStore, probed: Callable[[], ListStore | None]
    ) -> NDArray[np.uint8] | ListCopy | None:
        """The vectors of the rows kept, in order; None where they are not copied.

        Where lists are `probed` for such a filter it is the rows' codes instead.
        """
        if keep.count > COPIED * vectors.rows:
            return None
        with self._lock:
            if (copy := keep.copy) is not None:
                self._kept.move_to_end(weakref.ref(keep))
                return copy
            keep.asked += 1
            if keep.asked != _ASKED:
                return None
        store = probed() or vectors
        size = store.row_bytes * keep.count
        if size > self._most // _LARGEST:
            return None
        copy = store.copy_of(keep.rows)
        with self._lock:
            keep.copy, keep.asked = copy, 0
            self._kept[weakref.ref(keep)] = size
            self._make_room()
        return copy

    def _make_room(self) -> None:
        for gone in [kept for kept in self._kept if kept() is None]:
            del self._kept[gone]
        while sum(self._kept.values()) > self._most:
            oldest = self._kept.popitem(last=False)[0]()
            if oldest is not None:
                oldest.copy = None
