"""Pairs of rows that may be near, by their sketches: within clusters and across their borders.

The border of two clusters is a plane. Of a pair at distance δ on two sides of it, whose difference
is at an angle φ to the plane's normal, the distances to the plane add up to δ cos φ. So of two
clusters only rows near enough to their border are compared, with those near enough on its other
side. `reach` is the largest cos φ: with 1 no pair is missed.

Run as a program, it finds a share of them and sends them through a pipe.

Shapes: N and M rows, J clusters, X and Y rows at the borders of one cluster with others, P pairs.
Of a block [4, B]: from where to where rows are compared, and from where to where with others.
"""

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from laionkit.backends.near_cells import GROUP, Cells, Float32, Int64

# Rows of the clusters whose borders with those of others are looked at together, and the most
# distances to borders that are held for one of them.
_GROUP_ROWS, _DISTANCES = 32_768, 1 << 20
# Rows of a block: fewer have fewer in vain to compare with, more are compared in less time each.
_STEP, _SIDE = 64, 512
# Cosines that are looked through at a time: they stay in the processor's cache.
_COSINES = _SIDE * _SIDE
# What rounding may take off a cosine of sketches: what is left of a vector is a difference of
# squares in fp32.
_ROUNDING = 1e-4
# Into how many levels leans to a border are sorted; 16 bits tell them and the border.
_LEVELS = (1 << 16) // GROUP
_NONE = np.empty((0, 2), np.int64)


class Borders:
    """Finds pairs of rows that may be near."""

    def __init__(self, cells: Cells, min_cosine: float, reach: float) -> None:
        """Pairs whose cosine is at least `min_cosine`; `reach` as said above, 0 to 1."""
        self._cells, self._least = cells, min_cosine - _ROUNDING
        # What two rows of that cosine lie apart; rounding of fp32 is far below what is added.
        self._across = reach * ((2 - 2 * min_cosine) ** 0.5 + 2e-3)
        self._cosines = np.empty(_COSINES, np.float32)

    @property
    def parts(self) -> int:
        """Into how many parts comparing is cut: each two groups of clusters, each with itself."""
        groups = len(self._cells.groups(_GROUP_ROWS))
        return groups * (groups + 1) // 2

    def maybe_near(self, number: int = 0, count: int = 1) -> Iterator[Int64]:
        """Pairs of rows [P, 2] of share `number` of `count`, in no order; after each part, none."""
        groups = self._cells.groups(_GROUP_ROWS)
        parts = itertools.combinations_with_replacement(groups, 2)
        for ones, others in itertools.islice(parts, number, None, count):
            yield from filter(len, self._between(ones, others))
            yield _NONE

    def _between(self, ones: range, others: range) -> Iterator[Int64]:
        """Of a group of clusters and the same or a later one."""
        cells = self._cells
        my_lean_JN, their_lean_IM = cells.leans(ones, others), cells.leans(others, ones)
        my_edge, their_edge = cells.edges(ones), cells.edges(others)
        for i, one in enumerate(ones):
            mine = slice(my_edge[i], my_edge[i + 1])
            if one in others:
                place_N = cells.start(one) + np.arange(mine.stop - mine.start)
                yield from self._compared(place_N, place_N, _squares(len(place_N)))
            some = max(1, _DISTANCES // (mine.stop - mine.start))
            for j in range(max(0, one + 1 - others.start), len(others), some):
                to = slice(j, j + some)
                theirs = slice(their_edge[j], their_edge[min(j + some, len(others))])
                yield from self._near_borders(
                    one, others[to], my_lean_JN[to, mine], their_lean_IM[i, theirs]
                )

    def _near_borders(
        self, one: int, others: range, lean_JN: Float32, lean_M: Float32
    ) -> Iterator[Int64]:
        """Across the borders of a cluster with others; given by how much rows lean off them."""
        cells = self._cells
        most_J = self._across * cells.apart(one, others) + _ROUNDING
        edge_J = cells.edges(others)
        border_M = np.repeat(np.arange(len(others)), np.diff(edge_J))
        my_most_J = most_J - np.minimum.reduceat(lean_M, edge_J[:-1])
        their_most_J = most_J - lean_JN.min(axis=1)
        border_X, at_X = np.nonzero(lean_JN <= my_most_J[:, None])
        at_Y = np.flatnonzero(lean_M <= their_most_J[border_M])
        levels = (_LEVELS - 1) / float(most_J.max())
        key_X, order_X = _by_lean(border_X, lean_JN[border_X, at_X] * levels)
        key_Y, order_Y = _by_lean(border_M[at_Y], lean_M[at_Y] * levels)
        # The others of a row are those whose lean and its own are at most `most_J`.
        most_X = _LEVELS * border_X + (most_J * levels).astype(np.int64)[border_X]
        until_X = np.searchsorted(key_Y, _LEVELS * border_X + most_X - key_X, side="right")
        border_J1 = _LEVELS * np.arange(len(others) + 1)
        edge_X, edge_Y = np.searchsorted(key_X, border_J1), np.searchsorted(key_Y, border_J1)
        yield from self._compared(
            cells.start(one) + at_X[order_X],
            cells.start(others.start) + at_Y[order_Y],
            _steps(edge_X, edge_Y, until_X),
        )

    def _compared(self, place_N: Int64, place_M: Int64, block_4B: Int64) -> Iterator[Int64]:
        """Of blocks of rows at those places."""
        x_NP, y_MP = self._cells.first_look(place_N), self._cells.first_look(place_M)
        start_B, stop_B, begin_B, end_B = block_4B
        edge_B = np.concatenate([[0], np.cumsum((stop_B - start_B) * (end_B - begin_B))])
        first = 0
        while first < len(start_B):
            last = int(np.searchsorted(edge_B, edge_B[first] + _COSINES, side="right")) - 1
            used = 0
            for start, stop, begin, end in block_4B[:, first:last].T.tolist():
                size = (stop - start) * (end - begin)
                cosine_NM = self._cosines[used : used + size].reshape(stop - start, end - begin)
                np.matmul(x_NP[start:stop], y_MP[begin:end].T, out=cosine_NM)
                used += size
            at_P = np.flatnonzero(self._cosines[:used] >= self._least)
            if len(at_P):
                edge_S = edge_B[first : last + 1] - edge_B[first]
                i_P, j_P = _where(at_P, block_4B[:, first:last], edge_S)
                yield self._left(place_N[i_P], place_M[j_P])
            first = last

    def _left(self, first_P: Int64, second_P: Int64) -> Int64:
        """Of pairs of places, those that are left after the second look: pairs of rows [P, 2].

        The first comes before the second in order.
        """
        in_order = np.flatnonzero(first_P < second_P)
        first_P, second_P = first_P[in_order], second_P[in_order]
        most_P = self._cells.second_look(first_P, second_P)
        left = np.flatnonzero(most_P >= self._least)
        return np.stack([self._cells.row_N[first_P[left]], self._cells.row_N[second_P[left]]], 1)


def _by_lean(border_X: Int64, level_X: Float32) -> tuple[Int64, Int64]:
    """Rows border by border, the nearest first: what they are sorted by, and their order."""
    key_X = (_LEVELS * border_X + np.clip(level_X, 0, _LEVELS - 1)).astype(np.uint16)
    order_X = np.argsort(key_X, kind="stable")
    return key_X[order_X].astype(np.int64), order_X


def _squares(rows: int) -> Int64:
    """Blocks in which each pair of rows is, one way round or both."""
    start_S = np.arange(0, rows, _SIDE)
    one_B, other_B = np.triu_indices(len(start_S))
    stop_S = np.minimum(start_S + _SIDE, rows)
    return np.stack([start_S[one_B], stop_S[one_B], start_S[other_B], stop_S[other_B]])


def _steps(edge_X: Int64, edge_Y: Int64, until_X: Int64) -> Int64:
    """Blocks of rows with ever fewer others to compare with, each with those of its first.

    The rows at border j are those from ``edge_X[j]`` to ``edge_X[j + 1]``; each is compared with
    the others from ``edge_Y[j]`` to its own `until_X`.
    """
    border_A, start_A, stop_A = _cut(edge_X[:-1], edge_X[1:], _STEP)
    rows_B, begin_B, end_B = _cut(edge_Y[border_A], until_X[start_A], _SIDE)
    return np.stack([start_A[rows_B], stop_A[rows_B], begin_B, end_B])


def _cut(start_R: Int64, stop_R: Int64, size: int) -> tuple[Int64, Int64, Int64]:
    """Cut ranges into parts: which range each is of, and where it starts and stops."""
    parts_R = -((start_R - stop_R) // size)
    range_A = np.repeat(np.arange(len(start_R)), parts_R)
    part_A = np.arange(len(range_A)) - np.repeat(np.cumsum(parts_R) - parts_R, parts_R)
    start_A = start_R[range_A] + size * part_A
    return range_A, start_A, np.minimum(start_A + size, stop_R[range_A])


def _where(at_P: Int64, block_4B: Int64, edge_B: Int64) -> tuple[Int64, Int64]:
    """Rows and others of cosines that stand at `at_P` of blocks one after the other."""
    start_B, _, begin_B, end_B = block_4B
    block_P = np.searchsorted(edge_B, at_P, side="right") - 1
    i_P, j_P = np.divmod(at_P - edge_B[block_P], (end_B - begin_B)[block_P])
    return start_B[block_P] + i_P, begin_B[block_P] + j_P


def main() -> None:
    """Send a share of the pairs, as int64, and after each part nothing.

    Ends with 0 once all are sent, with 1 where nobody takes them.
    """
    folder, pipe, number, count, min_cosine, reach = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this one ends it
    taker = Connection(int(pipe), readable=False)
    borders = Borders(Cells(Path(folder)), float(min_cosine), float(reach))
    try:
        for pair_P2 in borders.maybe_near(int(number), int(count)):
            taker.send_bytes(pair_P2.tobytes())
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    main()
