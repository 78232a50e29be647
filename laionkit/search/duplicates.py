"""Near-identical hits: the best of each group stays, others make room for the next best."""

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512


def first_of_groups(
    vectors_ND: NDArray[np.float32], limit: float, wanted: int
) -> NDArray[np.int64]:
    """Rows, best first, of which none is as near as `limit` to one before it; at most `wanted`."""
    chosen: list[int] = []
    kept = np.empty((min(wanted, len(vectors_ND)), vectors_ND.shape[1]), np.float32)
    for start in range(0, len(vectors_ND), _BLOCK):
        block = vectors_ND[start : start + _BLOCK]
        fresh = np.ones(len(block), bool)
        if chosen:
            fresh = (block @ kept[: len(chosen)].T).max(axis=1) < limit
        near = block @ block.T >= limit
        for row in np.flatnonzero(fresh):
            if len(chosen) == wanted:
                return np.array(chosen, np.int64)
            if fresh[row]:
                kept[len(chosen)] = block[row]
                chosen.append(start + int(row))
                fresh[row:] &= ~near[row, row:]
    return np.array(chosen, np.int64)
