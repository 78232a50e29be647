"""Embedding rows: unit length. Pure numpy, fp32.

Shapes: N rows, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

from laionkit.core.errors import InputError


def unit_rows(emb_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale each row to length 1, so that inner product is cosine.

    A zero row stays zero. Raises InputError on NaN or infinity, naming the first row.
    """
    rows = np.asarray(emb_ND, dtype=np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise InputError(f"embedding row {int(np.argmin(finite))} holds NaN or infinity")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms == 0, 1, norms), dtype=np.float32)
