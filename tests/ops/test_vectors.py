"""Unit rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from laionkit.core.errors import InputError
from laionkit.ops.vectors import unit_rows

ROWS = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=st.floats(-100, 100, width=16)
)


@given(ROWS)
def test_rows_have_length_one_or_stay_zero(rows):
    norms = np.linalg.norm(unit_rows(rows), axis=1)
    zero = ~rows.any(axis=1)
    np.testing.assert_allclose(norms[~zero], 1, rtol=1e-5)
    assert not norms[zero].any()


@given(ROWS)
def test_float16_storage_keeps_rows_unit(rows):
    norms = np.linalg.norm(unit_rows(rows).astype(np.float16).astype(np.float32), axis=1)
    assert np.abs(norms[rows.any(axis=1)] - 1).max(initial=0) <= 2e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_no_vector_is_named(bad):
    rows = np.ones((3, 4), np.float32)
    rows[1, 2] = bad
    with pytest.raises(InputError, match="row 1"):
        unit_rows(rows)
