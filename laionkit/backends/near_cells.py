"""Clusters of vectors; vectors in few dimensions, those of a cluster side by side on disk.

Shapes: N vectors, D dimensions, K clusters, B directions of a basis, P dimensions of a sketch.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import threadpoolctl
from numpy.lib import format as npy
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
# Unit vectors [n, D] of rows; where the vectors lie is the caller's affair.
# Several threads read at once.
ReadRows = Callable[[Int64], Float32]
T = TypeVar("T")

POINTS_PER_CENTROID = 64
_ROWS = 2_048
# Directions of a sketch, and those of the first look at it: on CLIP's vectors half as many let one
# in 40,000 pairs through, at half the cost of each.
_DIRECTIONS, _FIRST = 62, 31
_BASIS_ROWS = 8_192
# Clusters of a group at most, however few rows they have.
GROUP = 32


def cluster(read: ReadRows, rows: int, clusters: int, seed: int) -> tuple[Float32, Int64]:
    """Spherical k-means trained on a seeded sample: centroids [K, D], and each row's cluster."""
    centroid_KD = train_clusters(read, rows, clusters, seed)
    own_N = np.empty(rows, np.int64)
    for block, x_ND in blocks(read, rows):
        own_N[block] = np.argmax(x_ND @ centroid_KD.T, axis=1)
    return centroid_KD, own_N


def train_clusters(read: ReadRows, rows: int, clusters: int, seed: int) -> Float32:
    """The centroids [K, D] of spherical k-means on a seeded sample."""
    sample = min(rows, clusters * POINTS_PER_CENTROID)
    chosen = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    train_ND = read(chosen)
    kmeans = faiss.Kmeans(
        train_ND.shape[1],
        clusters,
        niter=10,
        seed=seed,
        spherical=True,
        max_points_per_centroid=POINTS_PER_CENTROID,
        min_points_per_centroid=1,
    )
    kmeans.train(train_ND)
    centroid_KD: Float32 = kmeans.centroids
    return centroid_KD


class Sketch:
    """What a unit vector is along a basis, with the lengths of what is left of it.

    Columns: the first directions, the length of all the rest; the other directions, the length of
    what is left. The first look is at the former two; the second look, and borders, at all but the
    length of all the rest. The inner product of either part is never below that of the vectors.
    """

    def __init__(self, read: ReadRows, rows: int, seed: int) -> None:
        """Take the basis from a seeded sample: the directions in which it reaches furthest."""
        chosen = np.random.default_rng(seed).choice(rows, min(rows, _BASIS_ROWS), replace=False)
        x_ND = read(np.sort(chosen))
        _, vector_DD = np.linalg.eigh(x_ND.T @ x_ND)
        self._basis_DB = np.ascontiguousarray(vector_DD[:, ::-1][:, :_DIRECTIONS])
        self.first = min(_FIRST, self._basis_DB.shape[1])
        self.width = self._basis_DB.shape[1] + 2

    def of(self, x_ND: Float32) -> Float32:
        """The sketches [N, P] of vectors."""
        along_NB = x_ND @ self._basis_DB
        sketch_NP = np.empty((len(x_ND), self.width), np.float32)
        start, left_N = 0, np.ones(len(x_ND), np.float32)
        for part_NB in (along_NB[:, : self.first], along_NB[:, self.first :]):
            stop = start + part_NB.shape[1]
            sketch_NP[:, start:stop] = part_NB
            left_N -= np.einsum("nb,nb->n", part_NB, part_NB)
            sketch_NP[:, stop] = np.sqrt(np.maximum(0, left_N))
            start = stop + 1
        return sketch_NP


class Cells:
    """Sketches on disk, those of a cluster side by side; a row's place is where it lies there."""

    def __init__(self, folder: Path) -> None:
        """Open those that `sort` left in a folder."""
        self._sketch_NP, self._first_NP, self.row_N = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in ("sketch", "first", "row")
        )
        self._centroid_KP, self._edge_K = (
            np.load(folder / f"{name}.npy") for name in ("centroid", "edge")
        )

    @classmethod
    def sort(cls, folder: Path, read: ReadRows, rows: int, clusters: int, seed: int) -> "Cells":
        """Find each row's cluster by its sketch, then put the rows in order of clusters."""
        sketch = Sketch(read, rows, seed)

        def read_sketches(which: Int64) -> Float32:
            parts = [sketch.of(x_ND) for _, x_ND in blocks(lambda at: read(which[at]), len(which))]
            sketch_NP = np.concatenate(parts)
            sketch_NP[:, sketch.first] = 0
            return sketch_NP

        centroid_KP = train_clusters(read_sketches, rows, clusters, seed)
        as_read_NP = _file(folder, "as-read", np.float32, rows, sketch.width)
        own_N = _file(folder, "own", np.int32, rows)

        def look_at(block: slice) -> None:
            as_read_NP[block] = sketch.of(read(np.arange(block.start, block.stop)))
            own_N[block] = np.argmax(as_read_NP[block] @ centroid_KP.T, axis=1)

        _each(look_at, _slices(rows))
        size_K = sum(np.bincount(own_N[block], minlength=clusters) for block in _slices(rows))
        edge_K = np.concatenate([[0], np.cumsum(size_K)])
        sketch_NP = _file(folder, "sketch", np.float32, rows, sketch.width)
        first_NP = _file(folder, "first", np.float32, rows, sketch.first + 1)
        row_N = _file(folder, "row", np.int64, rows)

        def put(some: tuple[Int64, Int64]) -> None:
            from_B, place_B = some
            sketch_BP = np.take(as_read_NP, from_B, axis=0)
            sketch_NP[place_B], first_NP[place_B] = sketch_BP, sketch_BP[:, : sketch.first + 1]
            row_N[place_B] = from_B

        _each(put, _places(own_N, edge_K))
        np.save(folder / "centroid.npy", centroid_KP[size_K > 0])
        np.save(folder / "edge.npy", np.unique(edge_K))
        return cls(folder)

    def groups(self, rows: int) -> list[range]:
        """Clusters side by side that have so many rows together, if one alone has not more."""
        edge_K, starts = self._edge_K, [0]
        for number in range(1, len(self._centroid_KP)):
            if edge_K[number + 1] - edge_K[starts[-1]] > rows or number - starts[-1] == GROUP:
                starts.append(number)
        return [range(*pair) for pair in itertools.pairwise([*starts, len(self._centroid_KP)])]

    def start(self, number: int) -> int:
        """The place of a cluster's first row; its others come after."""
        return int(self._edge_K[number])

    def edges(self, clusters: range) -> Int64:
        """Where the rows of each of some clusters begin among theirs, and the last one's end."""
        edge_J: Int64 = self._edge_K[clusters.start : clusters.stop + 1] - self.start(
            clusters.start
        )
        return edge_J

    def apart(self, one: int, others: range) -> Float32:
        """The distances [J] of a cluster's centroid from others."""
        off_JP = self._centroid_KP[others.start : others.stop] - self._centroid_KP[one]
        distance_J: Float32 = np.linalg.norm(off_JP, axis=1)
        return distance_J

    def leans(self, ones: range, others: range) -> Float32:
        """By how much more the rows of some clusters lean to their own than to others: [J, N].

        That is a row's distance to the border, times how far the centroids are apart.
        """
        edge, start = self.edges(ones), self.start(ones.start)
        lean_JN = np.empty((len(others), edge[-1]), np.float32)
        other_JP = self._centroid_KP[others.start : others.stop]
        for one, (first, last) in zip(ones, itertools.pairwise(edge), strict=True):
            x_NP = self._sketch_NP[start + first : start + last]
            lean_JN[:, first:last] = (self._centroid_KP[one] - other_JP) @ x_NP.T
        return lean_JN

    def first_look(self, place_N: Int64) -> Float32:
        """The part of sketches that tells most pairs of rows apart."""
        return np.take(self._first_NP, place_N, axis=0)

    def second_look(self, first_P: Int64, second_P: Int64) -> Float32:
        """What the cosines [P] of pairs of places are at most."""
        x_PP, y_PP = (np.take(self._sketch_NP, at_P, axis=0) for at_P in (first_P, second_P))
        x_PP[:, self._first_NP.shape[1] - 1] = 0
        most_P: Float32 = np.einsum("np,np->n", x_PP, y_PP)
        return most_P


def _file(folder: Path, name: str, kind: type[np.generic], *shape: int) -> NDArray[Any]:
    """An array on disk; a plain one, as each slice of a memmap costs more than it is worth."""
    return np.asarray(npy.open_memmap(folder / f"{name}.npy", "w+", kind, shape))


def _places(own_N: NDArray[np.int32], edge_K: Int64) -> Iterator[tuple[Int64, Int64]]:
    """Block by block, rows and where they go: clusters from their edges on, rows in order."""
    next_K = edge_K[:-1].copy()
    for start in range(0, len(own_N), _ROWS):
        own_B = own_N[start : start + _ROWS]
        order = np.argsort(own_B, kind="stable")
        count_K = np.bincount(own_B, minlength=len(next_K))
        before_K = np.cumsum(count_K) - count_K
        yield start + order, np.arange(len(order)) + (next_K - before_K)[own_B[order]]
        next_K += count_K


def blocks(read: ReadRows, rows: int) -> Iterator[tuple[slice, Float32]]:
    """All rows, some thousands at a time: where they stand, and what `read` gives of them."""
    for block in _slices(rows):
        yield block, read(np.arange(block.start, block.stop))


def _slices(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _ROWS):
        yield slice(start, min(rows, start + _ROWS))


def _each(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do all, as many at a time as faiss may use threads; each in one thread alone."""
    threads = faiss.omp_get_max_threads()
    left = iter(items)
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        while some := list(itertools.islice(left, 16 * threads)):
            for done in pool.map(work, some):
                assert done is None
