"""Embedding rows: unit length, cosine, centring. Pure numpy, fp32.

Shapes: N rows, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

from laionkit.core.errors import InputError

# float16 stores a unit row with an error of at most 2^-11 an element: norms stay this close to 1.
UNIT_TOLERANCE = 2e-3


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


def are_unit_rows(emb_ND: NDArray[np.floating], tolerance: float = UNIT_TOLERANCE) -> bool:
    """Tell whether every row has length 1, within float16's rounding. Zero rows do not count."""
    norms = np.linalg.norm(np.asarray(emb_ND, dtype=np.float32), axis=1)
    norms = norms[norms > 0]
    return bool(np.all(np.abs(norms - 1) <= tolerance))


def row_cosines(
    left_ND: NDArray[np.floating], right_ND: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Cosine of each row with the row beside it, in fp32; 0 where either row is zero."""
    products = np.einsum("nd,nd->n", unit_rows(left_ND), unit_rows(right_ND))
    return np.asarray(products, dtype=np.float32)
