"""Lists: what finds the nearest centroid by a part of the dimensions first finds the same one."""

import numpy as np
import pytest

from laionkit.backends.knn_build import ListFinder
from laionkit.ops.vectors import unit_rows


@pytest.mark.parametrize(("dim", "least"), [(32, 1.0), (256, 0.99)])
def test_a_vector_is_in_the_list_of_its_nearest_centroid(dim, least):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, dim)) * np.geomspace(2, 0.2, dim)
    rows = centres[rng.integers(0, 40, 4000)] + 0.3 * rng.normal(size=(4000, dim))
    rows = unit_rows(rows.astype(np.float32))
    finder = ListFinder(rows, 60, 0)
    centroids = finder.centroids_LD
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    assert (finder.lists_of(rows) == (rows @ centroids.T).argmax(1)).mean() >= least
    again = ListFinder(rows, 60, 0)
    assert (again.centroids_LD == centroids).all()
