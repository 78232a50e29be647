"""Near pairs: none is missed, within clusters or across their borders."""

import numpy as np
import pytest

from laionkit.backends import near, near_cells
from laionkit.ops.vectors import unit_rows


def vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    points = centres[rng.integers(0, 20, rows)] + 0.7 * rng.normal(size=(rows, dim))
    copies = points[: rows // 10] + 0.12 * rng.normal(size=(rows // 10, dim))
    return unit_rows(np.concatenate([points, copies]).astype(np.float32))


@pytest.mark.parametrize(
    ("min_cosine", "limits"),
    [
        (0.9, {}),
        (0.97, {}),
        (0.9, {"_WORTH_A_BLOCK": 16, "_BLOCKS": 20, "_ROWS": 500}),  # many small blocks
        (0.9, {"_MANY": 0, "_MOST_MAYBE": 0.0}),  # never few dimensions
        (0.9, {"_MOST_MAYBE": 1.0, "_DIRECTIONS": 12, "_COMPARED": 8}),  # always
        (0.9, {"_MINE": 64, "_THEIRS": 128, "_DIRECTIONS": 6}),  # fewer than are compared
    ],
)
def test_every_pair_of_brute_force_is_found_across_borders_too(monkeypatch, min_cosine, limits):
    for name, value in {"ONE_CLUSTER": 100, **limits}.items():
        for module in (near, near_cells):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    emb_ND = vectors(3000, 32, 1)
    rows = len(emb_ND)
    found = set()
    for pair_P2 in near.near_pairs(lambda which: emb_ND[which], rows, min_cosine):
        found |= {(min(a, b), max(a, b)) for a, b in pair_P2.tolist()}
    cosines = np.triu(emb_ND @ emb_ND.T, 1)
    wanted = {tuple(pair) for pair in np.argwhere(cosines >= min_cosine).tolist()}
    assert len(wanted) > 100
    assert found == wanted
    _, own_N = near_cells.cluster(lambda which: emb_ND[which], rows, 27, 0)
    assert any(own_N[a] != own_N[b] for a, b in wanted)
