"""Near-identical hits: the best of each group stays, others make room for the next best."""

import numpy as np
from numpy.typing import NDArray


def first_of_groups(
    vectors_ND: NDArray[np.float32], limit: float, wanted: int
) -> NDArray[np.int64]:
    """Rows, best first, of which none is as near as `limit` to one before it; at most `wanted`."""
    chosen: list[int] = []
    kept = np.empty((min(wanted, len(vectors_ND)), vectors_ND.shape[1]), np.float32)
    for row, vector in enumerate(vectors_ND):
        if len(chosen) >= wanted:
            break
        if not chosen or float((kept[: len(chosen)] @ vector).max()) < limit:
            kept[len(chosen)] = vector
            chosen.append(row)
    return np.array(chosen, np.int64)
