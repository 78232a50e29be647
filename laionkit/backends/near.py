"""Every pair of vectors above a cosine, within clusters and across their borders.

SemDeDup (Abbas et al., 2023) compares within k-means clusters alone and misses pairs that a border
separates. The border of two clusters is a plane; of a pair at distance δ on two sides of it the
distances to that plane add up to δ at most. So only rows near enough to a border are compared with
those near enough on its other side, and no pair is missed.

All of that is done on sketches: a vector's parts along the directions in which the vectors reach
furthest, and the length of what is left of it. Two sketches' cosine is never below their vectors'
(Cauchy-Schwarz), so none is missed, and few pairs need all D.

Shapes: N and M vectors, D dimensions, K clusters, P dimensions of a sketch.
"""

import itertools
from collections.abc import Iterator

import faiss
import numpy as np

from laionkit.backends.near_cells import (
    Cells,
    Float32,
    Int64,
    ReadRows,
    Sketch,
)

ONE_CLUSTER = 20_000
_ROWS = 8_192
# Sketches compared at a time: their cosines stay in the processor's cache.
_MINE, _THEIRS = 1_024, 2_048
# Comparing a pair of rows takes a nanosecond, a block more some ten thousand.
_BLOCKS, _WORTH_A_BLOCK = 8, 32_768
# Where more pairs than this are left after the first look, and more than a few, it was of no use;
# so for some blocks on.
_MANY = 1_024
_MOST_MAYBE = 0.01
_BLOCKS_SKIPPED = 63
_ROUNDING = 1e-5
_NONE = np.empty((0, 2), np.int64)


def nearest_of(x_ND: Float32, other_MD: Float32) -> tuple[Float32, Int64]:
    """For each unit row of `x_ND` the cosine [N] of the nearest of `other_MD`, and which it is."""
    cosine_N1, which_N1 = faiss.knn(x_ND, other_MD, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return cosine_N1[:, 0], which_N1[:, 0]


def near_pairs(read: ReadRows, rows: int, min_cosine: float, seed: int = 0) -> Iterator[Int64]:
    """Every pair of rows whose cosine is at least `min_cosine`, as [P, 2], in no order.

    Holds two clusters at a time, and twice 256 bytes a row in temporary files.
    """
    if rows < 2:
        return
    comparer = _Comparer(read, min_cosine)
    sketch = Sketch(read, rows, seed)
    if rows <= ONE_CLUSTER:
        every = np.arange(rows)
        yield from comparer.within(every, sketch.compared(sketch.of(read(every))))
        yield comparer.rest()
        return
    # More of them leave fewer pairs near their borders, and more borders to look at.
    clusters = max(2, round(rows**0.5 / 2))
    with Cells.sorted(sketch, read, rows, clusters, seed) as cells:
        for one in range(clusters):
            yield from _pairs_from(one, cells, comparer)
        yield comparer.rest()


def _pairs_from(one: int, cells: Cells, comparer: "_Comparer") -> Iterator[Int64]:
    """Near pairs within cluster `one`, and of it with those after it."""
    row_N, x_NP = cells.read(one)
    if not len(row_N):
        return
    compared_NP = cells.sketch.compared(x_NP)
    yield from comparer.within(row_N, compared_NP)
    # By how much more a row leans to its own centroid than to others: its distance to the border
    # times that of the centroids.
    lean_KN = x_NP @ cells.centroid_KP[one] - cells.centroid_KP @ x_NP.T
    for other in range(one + 1, len(lean_KN)):
        row_M, y_MP = cells.read(other)
        if not len(row_M):
            continue
        lean_N = lean_KN[other]
        lean_M = y_MP @ (cells.centroid_KP[other] - cells.centroid_KP[one])
        most = comparer.distance * cells.apart(one, other) + _ROUNDING
        mine = _up_to(lean_N, most - lean_M.min())
        theirs = _up_to(lean_M, most - lean_N.min())
        if not len(mine) or not len(theirs):
            continue
        within_N = np.searchsorted(lean_M[theirs], most - lean_N[mine], side="right")
        ours = row_N[mine], compared_NP[mine]
        others = row_M[theirs], cells.sketch.compared(y_MP)[theirs]
        for start, stop in _steps(within_N):
            yield from comparer.across(ours, slice(start, stop), others, int(within_N[start]))


def _up_to(lean_N: Float32, most: float) -> Int64:
    """Places of what is `most` at most, the least first."""
    some = np.flatnonzero(lean_N <= most)
    return some[np.argsort(lean_N[some])]


def _steps(within_N: Int64) -> Iterator[tuple[int, int]]:
    """Cut rows with ever fewer others to compare with into blocks, each with those of its first.

    Blocks hold about as many pairs each, and few blocks hold few.
    """
    pairs_N = np.cumsum(within_N)
    count = min(_BLOCKS, 1 + int(pairs_N[-1]) // _WORTH_A_BLOCK)
    shares = pairs_N[-1] * np.arange(1, count) / count
    edges = sorted({0, *np.searchsorted(pairs_N, shares).tolist(), len(within_N)})
    return itertools.pairwise(edges)


class _Comparer:
    """Finds near pairs of rows: by their sketches first, and what is left by all dimensions."""

    def __init__(self, read: ReadRows, min_cosine: float) -> None:
        self._read, self._min = read, min_cosine
        # What two rows of that cosine lie apart; rounding of fp32 is far below what is added.
        self.distance = (2 - 2 * min_cosine) ** 0.5 + 2e-3
        # Pairs that may be near, until there are enough of them to be worth a look.
        self._maybe: list[Int64] = []
        self._waiting = 0
        # Blocks of the same two clusters to go in which the first look is not worth while.
        self._skip = 0

    def within(self, row_N: Int64, x_NP: Float32) -> Iterator[Int64]:
        """Near pairs [P, 2] among rows."""
        self._skip = 0
        for begin in range(0, len(row_N), _THEIRS):
            theirs = slice(begin, begin + _THEIRS)
            for start in range(0, min(begin + _THEIRS, len(row_N)), _MINE):
                mine = slice(start, start + _MINE)
                pair = row_N[mine], x_NP[mine], row_N[theirs], x_NP[theirs]
                yield from self._near(*pair, shift=begin - start)

    def across(
        self, ours: tuple[Int64, Float32], some: slice, others: tuple[Int64, Float32], first: int
    ) -> Iterator[Int64]:
        """Near pairs [P, 2] of some of our rows with the first of others: rows, sketches."""
        (row_N, x_NP), (row_M, y_MP) = ours, others
        self._skip = 0
        for begin in range(0, first, _THEIRS):
            theirs = slice(begin, min(begin + _THEIRS, first))
            for start in range(some.start, some.stop, _MINE):
                mine = slice(start, min(start + _MINE, some.stop))
                yield from self._near(row_N[mine], x_NP[mine], row_M[theirs], y_MP[theirs])

    def rest(self) -> Int64:
        """Near pairs among what waits."""
        maybe_P2, self._maybe = np.concatenate([_NONE, *self._maybe]), []
        self._waiting = 0
        parts = [_NONE]
        for some_P2 in np.array_split(maybe_P2, 1 + len(maybe_P2) // _ROWS):
            rows, at_Q = np.unique(some_P2, return_inverse=True)
            x_ND, at_P2 = self._read(rows), at_Q.reshape(some_P2.shape)
            cosine_P = np.einsum("pd,pd->p", x_ND[at_P2[:, 0]], x_ND[at_P2[:, 1]])
            parts.append(some_P2[cosine_P >= self._min])
        return np.concatenate(parts)

    def _near(
        self,
        mine: Int64,
        mine_NP: Float32,
        theirs: Int64,
        their_MP: Float32,
        shift: int | None = None,
    ) -> Iterator[Int64]:
        """Note the pairs of two blocks of rows that may be near; yield near ones of many.

        Of blocks of the same rows, `shift` apart, only pairs whose first comes before the second.
        """
        least, few = self._min - _ROUNDING, not self._skip
        if few:
            at_P2 = _above(mine_NP @ their_MP.T, least)
            few = len(at_P2) <= max(_MANY, len(mine) * len(theirs) * _MOST_MAYBE)
        if not few:
            self._skip = (self._skip or _BLOCKS_SKIPPED) - 1
            at_P2 = _above(self._read(mine) @ self._read(theirs).T, least)
        if shift is not None:
            at_P2 = at_P2[at_P2[:, 0] < at_P2[:, 1] + shift]
        if len(at_P2):
            self._maybe.append(np.stack([mine[at_P2[:, 0]], theirs[at_P2[:, 1]]], axis=1))
            self._waiting += len(at_P2)
            if self._waiting >= _ROWS:
                yield self.rest()


def _above(cosine_NM: Float32, least: float) -> Int64:
    """Places [P, 2] of what is at least `least`."""
    if cosine_NM.max() < least:  # as nearly always, and told much sooner
        return _NONE
    return np.stack(np.divmod(np.flatnonzero(cosine_NM >= least), cosine_NM.shape[1]), axis=1)
