"""Every pair of vectors above a cosine, within clusters and across their borders.

SemDeDup (Abbas et al., 2023) compares within k-means clusters alone and misses pairs that a border
separates. Here each vector is also a guest in every cluster whose border with its own it lies
near enough to: for a pair at distance δ on two sides of a bisecting plane, one of the two lies
within δ/2 of it, so one of the two clusters holds both, and no pair is missed.

All of that is done on sketches of P dimensions: a vector's parts along the P - 1 directions in
which the vectors reach furthest, and the length of what is left of it. Two sketches' cosine is
never below their vectors' (Cauchy-Schwarz), so none is missed, and few pairs need all D.

Shapes: N vectors, D dimensions, K clusters, P dimensions of a sketch.
"""

import tempfile
from collections.abc import Callable, Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
# Unit vectors [n, D] of rows; where the vectors lie is the caller's affair.
ReadRows = Callable[[Int64], Float32]

ONE_CLUSTER = 20_000
POINTS_PER_CENTROID = 64
_ROWS = 8_192
# Sketches compared at a time: their cosines stay in the processor's cache.
_MINE, _THEIRS = 1_024, 2_048
# Rows held as guests at a time, 4 bytes each.
_GUESTS_HELD = 1 << 26
_BASIS = 63
_BASIS_ROWS = 8_192
# Where more pairs than this are left after the first look, it was of no use; so for some blocks on.
_MOST_MAYBE = 0.01
_BLOCKS_SKIPPED = 63
_ROUNDING = 1e-5


def cluster(read: ReadRows, rows: int, clusters: int, seed: int) -> tuple[Float32, Int64]:
    """Spherical k-means trained on a seeded sample: centroids [K, D], and each row's cluster."""
    centroid_KD = train_clusters(read, rows, clusters, seed)
    own_N = np.empty(rows, np.int64)
    for block, x_ND in _blocks(read, rows):
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


def nearest_of(x_ND: Float32, other_MD: Float32) -> tuple[Float32, Int64]:
    """For each unit row of `x_ND` the cosine [N] of the nearest of `other_MD`, and which it is."""
    cosine_N1, which_N1 = faiss.knn(x_ND, other_MD, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return cosine_N1[:, 0], which_N1[:, 0]


def near_pairs(read: ReadRows, rows: int, min_cosine: float, seed: int = 0) -> Iterator[Int64]:
    """Every pair of rows whose cosine is at least `min_cosine`, as [P, 2], some of them twice.

    Holds 4 x 64 bytes a row in a temporary file, and all guests of as many clusters as fit memory.
    """
    if rows < 2:
        return
    with tempfile.TemporaryFile(prefix="laionkit-") as file:
        sketch_NP = _sketch(np.memmap(file, np.float32, "w+", shape=(rows, _BASIS + 1)), read, seed)
        comparer = _Comparer(read, sketch_NP, min_cosine)
        if rows <= ONE_CLUSTER:
            yield from comparer.pairs(np.arange(rows), np.empty(0, np.int64))
            return
        # More of them leave fewer guests times rows to compare, and cost more to assign.
        clusters = max(2, round(rows**0.5))
        centroid_KP = train_clusters(sketch_NP.__getitem__, rows, clusters, seed)
        for own, guests in _members(sketch_NP, centroid_KP, min_cosine, seed):
            yield from comparer.pairs(own, guests)


def _sketch(sketch_NP: Float32, read: ReadRows, seed: int) -> Float32:
    """Fill in the sketch of every row: what it is along a basis, and how long the rest of it is."""
    basis_DB = _basis(read, len(sketch_NP), seed)
    width = basis_DB.shape[1]
    for block, x_ND in _blocks(read, len(sketch_NP)):
        along_NB = x_ND @ basis_DB
        left_N = np.einsum("nd,nd->n", x_ND, x_ND) - np.einsum("nb,nb->n", along_NB, along_NB)
        sketch_NP[block, :width] = along_NB
        sketch_NP[block, width] = np.sqrt(np.maximum(0, left_N))
    return sketch_NP[:, : width + 1]


def _members(
    sketch_NP: Float32, centroid_KP: Float32, min_cosine: float, seed: int
) -> Iterator[tuple[Int64, Int64]]:
    """For each cluster its own rows, and those of others within δ/2 of their border with it.

    So many clusters are gathered in one pass over the rows as memory holds the guests of.
    """
    rows = len(sketch_NP)
    # Two rows' distance for that cosine, halved; rounding of fp32 is far below what is added.
    reach = (2 - 2 * min_cosine) ** 0.5 / 2 + 1e-3
    apart_KK = np.sqrt(np.maximum(0, 2 - 2 * centroid_KP @ centroid_KP.T))
    some = np.random.default_rng(seed).choice(rows, min(rows, _ROWS), replace=False)
    _, near_NK = _near_borders(sketch_NP[np.sort(some)], centroid_KP, reach * apart_KK)
    passes = 1 + int(near_NK.sum() / len(some) * rows / _GUESTS_HELD)
    for group in np.array_split(np.arange(len(centroid_KP)), passes):
        low, high = group[0], group[-1] + 1
        own: list[list[Int32]] = [[] for _ in group]
        guests: list[list[Int32]] = [[] for _ in group]
        for block, x_NP in _blocks(sketch_NP.__getitem__, rows):
            own_N, near_NK = _near_borders(x_NP, centroid_KP, reach * apart_KK)
            mine = np.flatnonzero((own_N >= low) & (own_N < high))
            _share_out(own, own_N[mine] - low, mine + block.start)
            where_G, cluster_G = np.nonzero(near_NK[:, low:high])
            _share_out(guests, cluster_G, where_G + block.start)
        for ours, theirs in zip(own, guests, strict=True):
            yield _joined(ours), _joined(theirs)


def _near_borders(
    x_ND: Float32, centroid_KD: Float32, reach_KK: Float32
) -> tuple[Int64, NDArray[np.bool_]]:
    """Each row's cluster [N], and the others [N, K] within whose reach of the border it lies."""
    cosine_NK = x_ND @ centroid_KD.T
    own_N = np.argmax(cosine_NK, axis=1)
    place_N = np.arange(len(own_N))
    near_NK = cosine_NK >= cosine_NK[place_N, own_N][:, None] - reach_KK[own_N]
    near_NK[place_N, own_N] = False
    return own_N, near_NK


def _share_out(parts: list[list[Int32]], cluster_R: Int64, row_R: Int64) -> None:
    """Append each row to the parts of its cluster."""
    order = np.argsort(cluster_R, kind="stable")
    edges = np.searchsorted(cluster_R[order], np.arange(len(parts) + 1))
    for number in np.flatnonzero(np.diff(edges)):
        rows = row_R[order[edges[number] : edges[number + 1]]]
        parts[number].append(rows.astype(np.int32))


def _joined(parts: list[Int32]) -> Int64:
    return np.concatenate(parts or [np.empty(0, np.int32)]).astype(np.int64)


class _Comparer:
    """Finds near pairs of rows: by their sketches first, and what is left by all dimensions."""

    def __init__(self, read: ReadRows, sketch_NP: Float32, min_cosine: float) -> None:
        self._read, self._sketch_NP, self._min = read, sketch_NP, min_cosine
        # Blocks to go in which the first look is not worth while: among own rows, with guests.
        self._skip = {True: 0, False: 0}

    def pairs(self, own: Int64, guests: Int64) -> Iterator[Int64]:
        """Near pairs of `own` rows with one another and with `guests`."""
        own_NP = self._sketch_NP[own]
        for begin in range(0, len(own), _THEIRS):
            theirs = slice(begin, begin + _THEIRS)
            for start in range(0, min(begin + _THEIRS, len(own)), _MINE):
                mine = slice(start, start + _MINE)
                block = own[mine], own_NP[mine], own[theirs], own_NP[theirs]
                yield self._near(*block, shift=begin - start)
        for begin in range(0, len(guests), _THEIRS):
            some = guests[begin : begin + _THEIRS]
            their_MP = self._sketch_NP[some]
            for start in range(0, len(own), _MINE):
                mine = slice(start, start + _MINE)
                yield self._near(own[mine], own_NP[mine], some, their_MP)

    def _near(
        self,
        mine: Int64,
        mine_NP: Float32,
        theirs: Int64,
        their_MP: Float32,
        shift: int | None = None,
    ) -> Int64:
        """Near pairs [P, 2] of two blocks of rows.

        Of blocks of the same rows, `shift` apart, only pairs whose first comes before the second.
        """
        among_own, least = shift is not None, self._min - _ROUNDING
        few = not self._skip[among_own]
        if few:
            at_P2 = _above(mine_NP @ their_MP.T, least)
            few = len(at_P2) <= len(mine) * (1 + len(theirs) * _MOST_MAYBE)
        if not few:
            self._skip[among_own] = (self._skip[among_own] or _BLOCKS_SKIPPED) - 1
            at_P2 = _above(self._read(mine) @ self._read(theirs).T, least)
        if shift is not None:
            at_P2 = at_P2[at_P2[:, 0] < at_P2[:, 1] + shift]
        return self._sure(np.stack([mine[at_P2[:, 0]], theirs[at_P2[:, 1]]], axis=1))

    def _sure(self, maybe_P2: Int64) -> Int64:
        """Of pairs of rows those whose vectors' cosine is high enough."""
        parts = []
        for some_P2 in np.array_split(maybe_P2, 1 + len(maybe_P2) // _ROWS):
            rows, at_Q = np.unique(some_P2, return_inverse=True)
            x_ND, at_P2 = self._read(rows), at_Q.reshape(some_P2.shape)
            cosine_P = np.einsum("pd,pd->p", x_ND[at_P2[:, 0]], x_ND[at_P2[:, 1]])
            parts.append(some_P2[cosine_P >= self._min])
        return np.concatenate(parts)


def _above(cosine_NM: Float32, least: float) -> Int64:
    """Places [P, 2] of what is at least `least`."""
    return np.stack(np.divmod(np.flatnonzero(cosine_NM >= least), cosine_NM.shape[1]), axis=1)


def _basis(read: ReadRows, rows: int, seed: int) -> Float32:
    """The directions [D, B] in which a sample of the rows reaches furthest."""
    chosen = np.random.default_rng(seed).choice(rows, min(rows, _BASIS_ROWS), replace=False)
    x_ND = read(np.sort(chosen))
    _, vector_DD = np.linalg.eigh(x_ND.T @ x_ND)
    basis_DB: Float32 = np.ascontiguousarray(vector_DD[:, -_BASIS:])
    return basis_DB


def _blocks(read: ReadRows, rows: int) -> Iterator[tuple[slice, Float32]]:
    for start in range(0, rows, _ROWS):
        stop = min(rows, start + _ROWS)
        yield slice(start, stop), read(np.arange(start, stop))
