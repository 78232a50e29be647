"""Clusters of vectors; vectors in few dimensions, those of a cluster side by side on disk.

Shapes: N vectors, D dimensions, K clusters, B directions of a basis, P dimensions of a sketch.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
# Unit vectors [n, D] of rows; where the vectors lie is the caller's affair.
ReadRows = Callable[[Int64], Float32]

POINTS_PER_CENTROID = 64
_ROWS = 8_192
# Directions that borders are told by, and those of them that rows are compared by: on CLIP's
# vectors half as many let one in 40,000 pairs through, at half the cost of each.
_DIRECTIONS, _COMPARED = 62, 31
_BASIS_ROWS = 8_192


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
    """What a vector is along a basis, with the lengths of what is left of it.

    Columns: the first directions, the length of all the rest; the other directions, the length of
    what is left. The first two are compared; borders are told by all but the second.
    """

    def __init__(self, read: ReadRows, rows: int, seed: int) -> None:
        """Take the basis from a seeded sample: the directions in which it reaches furthest."""
        chosen = np.random.default_rng(seed).choice(rows, min(rows, _BASIS_ROWS), replace=False)
        x_ND = read(np.sort(chosen))
        _, vector_DD = np.linalg.eigh(x_ND.T @ x_ND)
        self._basis_DB = np.ascontiguousarray(vector_DD[:, ::-1][:, :_DIRECTIONS])
        self._first = min(_COMPARED, self._basis_DB.shape[1])
        self.width = self._basis_DB.shape[1] + 2

    def of(self, x_ND: Float32) -> Float32:
        """The sketches [N, P] of vectors."""
        along_NB, first = x_ND @ self._basis_DB, self._first
        left_NB = np.einsum("nd,nd->n", x_ND, x_ND)[:, None] - np.cumsum(along_NB**2, axis=1)
        left_NB = np.sqrt(np.maximum(0, left_NB))
        parts = along_NB[:, :first], left_NB[:, [first - 1]], along_NB[:, first:], left_NB[:, [-1]]
        return np.concatenate(parts, axis=1)

    def compared(self, sketch_NP: Float32) -> Float32:
        """The part of sketches that rows are compared by."""
        return sketch_NP[:, : self._first + 1]

    def bordered(self, sketch_NP: Float32) -> Float32:
        """The part of sketches that borders are told by, nil elsewhere."""
        sketch_NP[:, self._first] = 0
        return sketch_NP


class Cells:
    """Sketches on disk, those of a cluster side by side."""

    def __init__(
        self,
        sketch: Sketch,
        centroid_KP: Float32,
        sketch_NP: Float32,
        row_N: Int64,
        edge_K: Int64,
    ) -> None:
        """Cluster k has the places from ``edge_K[k]`` to ``edge_K[k + 1]``."""
        self.sketch, self.centroid_KP = sketch, centroid_KP
        self._sketch_NP, self._row_N, self._edge_K = sketch_NP, row_N, edge_K

    @classmethod
    @contextlib.contextmanager
    def sorted(
        cls, sketch: Sketch, read: ReadRows, rows: int, clusters: int, seed: int
    ) -> Iterator["Cells"]:
        """Find each row's cluster by its sketch, then put the rows in order of clusters."""

        def read_sketches(which: Int64) -> Float32:
            parts = [sketch.of(x_ND) for _, x_ND in blocks(lambda at: read(which[at]), len(which))]
            return sketch.bordered(np.concatenate(parts))

        centroid_KP = train_clusters(read_sketches, rows, clusters, seed)
        with tempfile.TemporaryDirectory(prefix="laionkit-") as folder:
            as_read_NP = _file(folder, "as-read", np.float32, rows, sketch.width)
            own_N = _file(folder, "own", np.int32, rows)
            size_K = np.zeros(clusters, np.int64)
            for block, x_ND in blocks(read, rows):
                as_read_NP[block] = sketch.of(x_ND)
                own_N[block] = np.argmax(as_read_NP[block] @ centroid_KP.T, axis=1)
                size_K += np.bincount(own_N[block], minlength=clusters)
            sketch_NP = _file(folder, "sketch", np.float32, rows, sketch.width)
            row_N = _file(folder, "row", np.int64, rows)
            edge_K = np.concatenate([[0], np.cumsum(size_K)])
            for from_B, place_B in _places(own_N, edge_K):
                sketch_NP[place_B], row_N[place_B] = as_read_NP[from_B], from_B
            yield cls(sketch, centroid_KP, sketch_NP, row_N, edge_K)

    def read(self, number: int) -> tuple[Int64, Float32]:
        """The rows [N] of a cluster, and their sketches [N, P]."""
        places = slice(self._edge_K[number], self._edge_K[number + 1])
        return self._row_N[places], self._sketch_NP[places]

    def apart(self, one: int, other: int) -> float:
        """The distance of two centroids."""
        return float(np.linalg.norm(self.centroid_KP[one] - self.centroid_KP[other]))


def _file(folder: str, name: str, kind: type[np.generic], *shape: int) -> NDArray[Any]:
    """An array on disk; a plain one, as each slice of a memmap costs more than it is worth."""
    return np.asarray(np.memmap(Path(folder) / name, kind, "w+", shape=shape))


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
    for start in range(0, rows, _ROWS):
        stop = min(rows, start + _ROWS)
        yield slice(start, stop), read(np.arange(start, stop))
