"""Every pair of vectors above a cosine, within clusters and across their borders.

SemDeDup (Abbas et al., 2023) compares within k-means clusters alone and misses pairs that a border
separates. Here each vector is also a guest in every cluster whose border with its own it lies
near enough to: for a pair at distance δ on two sides of a bisecting plane, one of the two lies
within δ/2 of it, so one of the two clusters holds both, and no pair is missed.

Shapes: N vectors, D dimensions, K clusters.
"""

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
_COLUMNS = 1_024
# Rows held as guests at a time, 4 bytes each.
_GUESTS_HELD = 1 << 26
_BASIS = 63
_BASIS_ROWS = 8_192
# Where more pairs than this are left after the first look, it was of no use; so for some blocks on.
_MOST_MAYBE = 0.005
_BLOCKS_SKIPPED = 15
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
    """Every pair of rows whose cosine is at least `min_cosine`, as [P, 2], some of them twice."""
    comparer = _Comparer(read, _basis(read, rows, seed), min_cosine)
    if rows <= ONE_CLUSTER:
        yield from comparer.pairs(np.arange(rows), np.empty(0, np.int64))
        return
    clusters = max(2, round(rows**0.5 / 2))
    centroid_KD = train_clusters(read, rows, clusters, seed)
    for own, guests in _members(read, rows, centroid_KD, min_cosine, seed):
        yield from comparer.pairs(own, guests)


def _members(
    read: ReadRows, rows: int, centroid_KD: Float32, min_cosine: float, seed: int
) -> Iterator[tuple[Int64, Int64]]:
    """For each cluster its own rows, and those of others within δ/2 of their border with it.

    So many clusters are gathered in one pass over the rows as memory holds the guests of.
    """
    reach = (2 - 2 * min_cosine) ** 0.5 / 2 + 1e-3  # fp16 vectors are off by about 1e-3
    apart_KK = np.sqrt(np.maximum(0, 2 - 2 * centroid_KD @ centroid_KD.T))
    some = np.random.default_rng(seed).choice(rows, min(rows, _ROWS), replace=False)
    own_N, near_NK = _near_borders(read(np.sort(some)), centroid_KD, reach * apart_KK)
    passes = 1 + int(near_NK.sum() / len(some) * rows / _GUESTS_HELD)
    for group in np.array_split(np.arange(len(centroid_KD)), passes):
        low, high = group[0], group[-1] + 1
        own: list[list[Int32]] = [[] for _ in group]
        guests: list[list[Int32]] = [[] for _ in group]
        for block, x_ND in _blocks(read, rows):
            own_N, near_NK = _near_borders(x_ND, centroid_KD, reach * apart_KK)
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
    """Finds near pairs of rows. `basis_DP` spans P directions that hold most of the vectors.

    Two unit vectors' cosine is at most that of their parts in the basis plus the product of the
    lengths of what is left of them (Cauchy-Schwarz): so what is compared in P + 1 dimensions first
    misses nothing, and few pairs need all D.
    """

    def __init__(self, read: ReadRows, basis_DP: Float32, min_cosine: float) -> None:
        self._read, self._basis_DP, self._min = read, basis_DP, min_cosine
        # Blocks to go in which the first look is not worth while: among own rows, with guests.
        self._skip = {True: 0, False: 0}

    def pairs(self, own: Int64, guests: Int64) -> Iterator[Int64]:
        """Near pairs of `own` rows with one another and with `guests`."""
        for start in range(0, len(own), _COLUMNS):
            mine = own[start : start + _COLUMNS]
            mine_ND = self._read(mine)
            for others in (own[start:], guests):
                for begin in range(0, len(others), _ROWS):
                    theirs = others[begin : begin + _ROWS]
                    near_P2 = self._near(mine_ND, self._read(theirs), others is not guests)
                    pair_P2 = np.stack([mine[near_P2[:, 0]], theirs[near_P2[:, 1]]], axis=1)
                    yield pair_P2[pair_P2[:, 0] != pair_P2[:, 1]]

    def _near(self, mine_ND: Float32, their_MD: Float32, among_own: bool) -> Int64:
        """Places [P, 2] of near pairs of two blocks."""
        if self._skip[among_own]:
            self._skip[among_own] -= 1
            return _above(mine_ND @ their_MD.T, self._min)
        maybe_P2 = _above(self._few(mine_ND) @ self._few(their_MD).T, self._min - _ROUNDING)
        if len(maybe_P2) > len(mine_ND) * (1 + len(their_MD) * _MOST_MAYBE):
            self._skip[among_own] = _BLOCKS_SKIPPED
            return _above(mine_ND @ their_MD.T, self._min)
        parts = []
        for some_P2 in np.array_split(maybe_P2, max(1, len(maybe_P2) // _ROWS)):
            one_PD, other_PD = mine_ND[some_P2[:, 0]], their_MD[some_P2[:, 1]]
            parts.append(some_P2[np.einsum("pd,pd->p", one_PD, other_PD) >= self._min])
        return np.concatenate(parts)

    def _few(self, x_ND: Float32) -> Float32:
        """Rows in the basis, and the length of what is left of each: [N, P + 1]."""
        x_NP = x_ND @ self._basis_DP
        left_N = np.sqrt(np.maximum(0, 1 - np.einsum("np,np->n", x_NP, x_NP)))
        return np.concatenate([x_NP, left_N[:, None]], axis=1)


def _above(cosine_NM: Float32, least: float) -> Int64:
    """Places [P, 2] of what is at least `least`; rows without any cost one look."""
    some = np.flatnonzero(cosine_NM.max(axis=1) >= least)
    near_P2 = np.argwhere(cosine_NM[some] >= least)
    near_P2[:, 0] = some[near_P2[:, 0]]
    return near_P2


def _basis(read: ReadRows, rows: int, seed: int) -> Float32:
    """The directions [D, P] in which a sample of the rows reaches furthest."""
    chosen = np.random.default_rng(seed).choice(rows, min(rows, _BASIS_ROWS), replace=False)
    x_ND = read(np.sort(chosen))
    _, vector_DD = np.linalg.eigh(x_ND.T @ x_ND)
    basis_DP: Float32 = np.ascontiguousarray(vector_DD[:, -_BASIS:])
    return basis_DP


def _blocks(read: ReadRows, rows: int) -> Iterator[tuple[slice, Float32]]:
    for start in range(0, rows, _ROWS):
        stop = min(rows, start + _ROWS)
        yield slice(start, stop), read(np.arange(start, stop))
