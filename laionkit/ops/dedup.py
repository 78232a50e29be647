"""Which of several alike samples stay: perceptual hashes, pairs within a distance, greedy keeping.

The hash is the 64-bit DCT hash of "pHash" (Zauner 2010): the low frequencies of a 32 × 32 grey
picture against their median. Pairs within d bits are found exactly by the pigeonhole rule of
multi-index hashing (Norouzi et al., CVPR 2012): of d + 1 parts of the hash, one must be equal.

Shapes: N samples, P pairs.
"""

import itertools
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

HASH_BITS = 64
_GREY_PX = 32
# A JPEG decoded no larger than about this has next to the same hash, in half the time: of 119
# photographs, all found their copies of 0.3 to 1.5 times the size within 4 bits, as at full size.
SHRUNK_PX = 64
_LOW = 8
_BLOCK = 2048


def perceptual_hash(image_HWC: NDArray[np.uint8]) -> int:
    """The 64-bit DCT hash of an RGB picture; near for the same picture scaled or re-encoded."""
    grey = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_GREY_PX, _GREY_PX), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:_LOW, :_LOW].ravel()
    bits = low > np.median(low)
    return int(np.packbits(bits).view(">u8")[0])


def hash_pairs(hash_N: UInt64, max_bits: int) -> Iterator[Int64]:
    """Every pair of hashes that differ in at most `max_bits` bits, as [P, 2] with i < j.

    A pair may come more than once.
    """
    for part_N in _parts(hash_N, max_bits + 1):
        order = np.argsort(part_N, kind="stable")
        ends = np.flatnonzero(np.diff(part_N[order])) + 1
        for group in np.split(order, ends):
            if len(group) > 1:
                yield from _pairs_within(hash_N, group.astype(np.int64), max_bits)


def keep_greedily(count: int, pair_P2: Int64) -> Int64:
    """Who each of `count` samples, the better first, gives way to: -1 stays, else the keeper.

    A sample stays unless a better one that stays is its pair; so what it gives way to is kept.
    """
    keeper_N = np.full(count, -1, np.int64)
    pair_P2 = np.sort(pair_P2, axis=1)
    order = np.lexsort((pair_P2[:, 1], pair_P2[:, 0]))
    for better, worse in pair_P2[order].tolist():
        if better != worse and keeper_N[better] < 0 and keeper_N[worse] < 0:
            keeper_N[worse] = better
    return keeper_N


def _parts(hash_N: UInt64, parts: int) -> Iterator[UInt64]:
    """Cut each hash into `parts` of nearly equal width."""
    edges = np.linspace(0, HASH_BITS, parts + 1).astype(int)
    for low, high in itertools.pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        yield (hash_N >> np.uint64(low)) & mask


def _pairs_within(hash_N: UInt64, group: Int64, max_bits: int) -> Iterator[Int64]:
    for start in range(0, len(group), _BLOCK):
        rows = group[start : start + _BLOCK]
        for other in range(start, len(group), _BLOCK):
            columns = group[other : other + _BLOCK]
            differ = np.bitwise_count(hash_N[rows, None] ^ hash_N[None, columns])
            near = np.argwhere(differ <= max_bits)
            pair_P2 = np.stack([rows[near[:, 0]], columns[near[:, 1]]], axis=1)
            yield pair_P2[pair_P2[:, 0] < pair_P2[:, 1]] if start == other else pair_P2
