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
Int64 = NDArray[np.int64]
# Unit vectors [n, D] of rows; where the vectors lie is the caller's affair.
ReadRows = Callable[[Int64], Float32]

ONE_CLUSTER = 20_000
POINTS_PER_CENTROID = 64
_ROWS = 16_384
_COLUMNS = 4_096


def cluster(read: ReadRows, rows: int, clusters: int, seed: int) -> tuple[Float32, Int64]:
    """Spherical k-means trained on a seeded sample: centroids [K, D], and each row's cluster."""
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
    own_N = np.empty(rows, np.int64)
    for block, x_ND in _blocks(read, rows):
        own_N[block] = np.argmax(x_ND @ kmeans.centroids.T, axis=1)
    return kmeans.centroids, own_N


def nearest_of(x_ND: Float32, other_MD: Float32) -> tuple[Float32, Int64]:
    """For each unit row of `x_ND` the cosine [N] of the nearest of `other_MD`, and which it is."""
    cosine_N1, which_N1 = faiss.knn(x_ND, other_MD, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return cosine_N1[:, 0], which_N1[:, 0]


def near_pairs(read: ReadRows, rows: int, min_cosine: float, seed: int = 0) -> Iterator[Int64]:
    """Every pair of rows whose cosine is at least `min_cosine`, as [P, 2], some of them twice."""
    if rows <= ONE_CLUSTER:
        everyone = np.arange(rows)
        yield from _pairs(read, everyone, everyone, min_cosine)
        return
    clusters = max(2, round(rows**0.5 / 2))
    centroid_KD, own_N = cluster(read, rows, clusters, seed)
    guests = _guests(read, rows, centroid_KD, own_N, min_cosine)
    for number in range(clusters):
        own = np.flatnonzero(own_N == number)
        if len(own):
            yield from _pairs(read, own, np.concatenate([own, guests[number]]), min_cosine)


def _guests(
    read: ReadRows, rows: int, centroid_KD: Float32, own_N: Int64, min_cosine: float
) -> list[Int64]:
    """For each cluster the rows of others that lie within δ/2 of their border with it."""
    reach = (2 - 2 * min_cosine) ** 0.5 / 2 + 1e-3  # fp16 vectors are off by about 1e-3
    apart_KK = np.sqrt(np.maximum(0, 2 - 2 * centroid_KD @ centroid_KD.T))
    found: list[list[Int64]] = [[] for _ in centroid_KD]
    for block, x_ND in _blocks(read, rows):
        cosine_NK = x_ND @ centroid_KD.T
        own = own_N[block]
        own_cosine_N1 = np.take_along_axis(cosine_NK, own[:, None], axis=1)
        near_NK = own_cosine_N1 - cosine_NK <= reach * apart_KK[own]
        near_NK[np.arange(len(own)), own] = False
        where, which = np.nonzero(near_NK)
        order = np.argsort(which, kind="stable")
        edges = np.searchsorted(which[order], np.arange(len(centroid_KD) + 1))
        start = block.start
        for number in np.unique(which):
            found[number].append(where[order[edges[number] : edges[number + 1]]] + start)
    return [np.concatenate(parts) if parts else np.empty(0, np.int64) for parts in found]


def _pairs(read: ReadRows, own: Int64, others: Int64, min_cosine: float) -> Iterator[Int64]:
    """Pairs of `own` with `others`, of which `own` is the beginning."""
    for start in range(0, len(own), _COLUMNS):
        mine = own[start : start + _COLUMNS]
        mine_ND = read(mine)
        for begin in range(start, len(others), _ROWS):
            theirs = others[begin : begin + _ROWS]
            near = np.argwhere(mine_ND @ read(theirs).T >= min_cosine)
            pair_P2 = np.stack([mine[near[:, 0]], theirs[near[:, 1]]], axis=1)
            yield pair_P2[pair_P2[:, 0] != pair_P2[:, 1]]


def _blocks(read: ReadRows, rows: int) -> Iterator[tuple[slice, Float32]]:
    for start in range(0, rows, _ROWS):
        stop = min(rows, start + _ROWS)
        yield slice(start, stop), read(np.arange(start, stop))
