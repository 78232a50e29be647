"""Duplicates: hashes of altered pictures, pairs against brute force, who stays."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laionkit.ops.dedup import hash_pairs, keep_greedily, perceptual_hash


def scene(seed: int, px: int = 96) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (px, px), interpolation=cv2.INTER_CUBIC)


def test_a_picture_scaled_and_encoded_again_keeps_its_hash_and_others_differ():
    hashes, copied = [], []
    for seed in range(40):
        original = scene(seed)
        done, data = cv2.imencode(".jpg", original, [cv2.IMWRITE_JPEG_QUALITY, 60])
        assert done
        again = cv2.imdecode(data, cv2.IMREAD_COLOR)
        scaled = cv2.resize(original, (61, 140), interpolation=cv2.INTER_AREA)
        first, *copies = (perceptual_hash(picture) for picture in (original, again, scaled))
        copied += [(first ^ copy).bit_count() for copy in copies]
        hashes.append(first)
    differ = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert np.mean(np.array(copied) <= 4) > 0.9
    assert max(copied) <= 8 < min(differ)


@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_pairs_are_those_of_brute_force(seed, max_bits):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, 12, dtype=np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, 12).astype(np.uint64)
    hashes = np.concatenate([base, base ^ flips, base[:3]])
    found = {tuple(pair) for pairs in hash_pairs(hashes, max_bits) for pair in pairs.tolist()}
    wanted = {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= max_bits
    }
    assert {tuple(sorted(pair)) for pair in found} == wanted


@pytest.mark.parametrize(
    ("pairs", "keepers"),
    [
        ([], [-1, -1, -1, -1]),
        ([[0, 1], [1, 2]], [-1, 0, -1, -1]),
        ([[2, 1], [1, 0], [2, 0]], [-1, 0, 0, -1]),
        ([[3, 0], [3, 0], [2, 3]], [-1, -1, -1, 0]),
    ],
)
def test_what_a_sample_gives_way_to_is_kept(pairs, keepers):
    found = keep_greedily(4, np.array(pairs, np.int64).reshape(-1, 2))
    assert found.tolist() == keepers
    assert all(found[keeper] == -1 for keeper in found if keeper >= 0)
