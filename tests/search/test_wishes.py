"""Blended queries, more like this, duplicates, pages: what they promise, against numpy."""

import numpy as np
import pytest

from laionkit.core.errors import ConfigError, InputError
from laionkit.search.blend import blend, parse_boost, parse_weighted
from laionkit.search.searcher import Searcher
from laionkit.stages.index import index
from tests.search.datasets import add_embeddings, assert_nearest, clustered, cosines, unit

DIM, ROWS = 24, 600
BASE = clustered(ROWS, DIM, seed=5)


@pytest.fixture(scope="module")
def vectors():
    """Rows of which each of the last 200 is nearly one of the first 200."""
    copies = unit(BASE[:200].astype(np.float32) + 0.005)
    return np.concatenate([BASE[:400], copies.astype(np.float16)])


@pytest.fixture(scope="module")
def keys():
    return [f"00000{row:04d}" for row in range(ROWS)]


@pytest.fixture(scope="module")
def searcher(vectors, tmp_path_factory):
    place = tmp_path_factory.mktemp("wishes")
    add_embeddings(place, "00000", vectors)
    index(str(place))
    return Searcher(place)


def test_more_like_a_key_leaves_out_the_key(searcher, vectors, keys):
    hits = searcher.search(like=keys[17], k=20)
    others = np.arange(ROWS) != 17
    assert_nearest(hits, keys, vectors, vectors[17].astype(np.float32), 20, others)
    assert hits.plan.matches == ROWS - 1


def test_a_key_that_is_not_there_is_named(searcher):
    with pytest.raises(InputError, match="no key '123'"):
        searcher.search(like="123")


def test_no_two_hits_are_duplicates_and_there_are_still_k(searcher, vectors, keys):
    query = vectors[3].astype(np.float32)
    hits = searcher.search(vector=query, k=50, dedup=0.99)
    assert len(hits) == 50
    rows = [keys.index(key) for key in hits.key]
    near = np.array([cosines(vectors[rows], vectors[row].astype(np.float32)) for row in rows])
    assert near[~np.eye(50, dtype=bool)].max() < 0.99
    order = np.argsort(-cosines(vectors, query), kind="stable")
    assert rows[0] in order[:2]
    left_out = [
        row
        for row in order
        if row not in rows and cosines(vectors, query)[row] > hits.match.iloc[-1] + 1e-6
    ]
    kept = vectors[rows].astype(np.float32)
    assert all((cosines(kept, vectors[row].astype(np.float32)) >= 0.989).any() for row in left_out)


def test_duplicates_of_everything_leave_one(searcher):
    assert len(searcher.search(vector=np.ones(DIM), k=10, dedup=-1)) == 1


def test_pages_do_not_repeat_and_join_to_the_whole(searcher):
    query = np.ones(DIM)
    whole = searcher.search(vector=query, k=ROWS).key.tolist()
    pages = [searcher.search(vector=query, k=70, page=page).key.tolist() for page in range(1, 11)]
    assert [len(page) for page in pages] == [70] * 8 + [40, 0]
    assert [key for page in pages for key in page] == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page": 0}, "page=0"),
        ({"page": 10_001}, "page=10001"),
        ({"dedup": 2.0}, "dedup=2.0"),
        ({"dedup": 0.9, "k": 6000}, "5000 hits deep"),
        ({"boost": ["taste"]}, "COLUMN=WEIGHT"),
        ({"boost": ["taste=1"]}, "has no such score"),
    ],
)
def test_a_wrong_wish_is_one_clear_line(searcher, settings, message):
    with pytest.raises(ConfigError, match=message):
        searcher.search(vector=np.ones(DIM), **settings)


def test_a_blend_ranks_by_the_weighted_sum_of_cosines():
    rng = np.random.default_rng(0)
    a, b = unit(rng.standard_normal((2, DIM)))
    rows = BASE.astype(np.float32)
    wanted = rows @ a - 0.4 * (rows @ b)
    assert (
        np.argsort(-(rows @ blend([(1, a), (-0.4, b)])))[:50].tolist()
        == np.argsort(-wanted)[:50].tolist()
    )
    with pytest.raises(InputError, match="cancel out"):
        blend([(1, a), (-1, a)])


def test_weights_are_read_before_words():
    assert parse_weighted("1.5:red fox") == (1.5, "red fox")
    assert parse_weighted(".5: 3:2 aspect") == (0.5, "3:2 aspect")
    assert parse_weighted("fox: a study") == (1.0, "fox: a study")
    assert parse_boost("aesthetic_v2=0.3") == ("aesthetic_v2", 0.3)
