"""Blended queries, more like this, duplicates, pages: what they promise, against numpy."""

import itertools

import numpy as np
import pytest

from laionkit.backends.heads import load_head
from laionkit.core.errors import ConfigError, InputError
from laionkit.search import planner
from laionkit.search.blend import Wish, blend, parse_boost, parse_wish
from laionkit.search.duplicates import first_of_groups
from laionkit.search.searcher import Searcher
from laionkit.stages.index import IndexConfig, index
from laionkit.stages.score import score
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


def test_keys_and_vectors_blend_by_weight_and_the_keys_are_no_hits(
    searcher, vectors, keys, tmp_path
):
    np.save(tmp_path / "away.npy", vectors[30])
    hits = searcher.search(
        like=keys[17],
        plus=[f"0.5:key={keys[40]}"],
        minus=[f"0.25:vector={tmp_path}/away.npy"],
        k=40,
    )
    rows = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    wanted = rows @ rows[17] + 0.5 * (rows @ rows[40]) - 0.25 * (rows @ rows[30])
    order = [row for row in np.argsort(-wanted) if row not in (17, 40)]
    assert np.allclose(wanted[[keys.index(key) for key in hits.key]], wanted[order[:40]], atol=1e-5)


def test_what_is_only_against_something_finds_the_least_like_it(searcher, vectors, keys):
    hits = searcher.search(minus=[f"key={keys[3]}"], k=1)
    assert hits.key[0] == keys[int(np.argmin(cosines(vectors, vectors[3].astype(np.float32))))]


def test_one_wish_needs_no_list(searcher, keys):
    one = searcher.search(like=keys[3], plus=f"0.5:key={keys[5]}", minus=f"key={keys[9]}")
    listed = searcher.search(like=keys[3], plus=[f"0.5:key={keys[5]}"], minus=[f"key={keys[9]}"])
    assert one.equals(listed)


def test_keys_that_hits_should_be_unlike_are_no_hits(searcher, keys):
    hits = searcher.search(like=keys[3], minus=[f"0.1:key={keys[5]}"], k=len(keys))
    assert set(hits.key) == set(keys) - {keys[3], keys[5]}


def test_a_boost_ranks_by_cosine_plus_weighted_score(tmp_path, heads_cache):
    rows = clustered(300, 768, seed=2)
    add_embeddings(tmp_path, "00000", rows, facts={"backbone": "openai/ViT-L-14"})
    score(str(tmp_path))
    index(str(tmp_path))
    query = unit(np.random.default_rng(0).standard_normal((1, 768)))[0]
    searcher = Searcher(tmp_path)
    plain = searcher.search(vector=query, k=300)
    boosted = searcher.search(vector=query, k=300, boost={"aesthetic_v2": 0.3})
    weights, bias = load_head("aesthetic-v2").affine()
    plain["wanted"] = plain.match + 0.3 * (plain.aesthetic_v2 - bias) / np.linalg.norm(weights)
    wanted = plain.set_index("key").wanted
    assert plain.key.tolist() != boosted.key.tolist()
    assert np.allclose(wanted[boosted.key], wanted.sort_values(ascending=False), atol=2e-5)


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


def test_pages_of_a_probed_index_never_repeat(tmp_path, monkeypatch):
    """Though it is searched deeper on the way, and though a deeper probe finds other rows."""
    monkeypatch.setattr(planner, "probe_ms", lambda *_: 0.0)
    add_embeddings(tmp_path, "00000", clustered(6000, DIM, seed=6))
    index(str(tmp_path), IndexConfig(kind="ivf", lists=60))
    searcher, query = Searcher(tmp_path), np.ones(DIM)
    for dedup in (None, 0.97):
        pages = [searcher.search(vector=query, k=5, page=n, dedup=dedup) for n in range(1, 45)]
        found = list(itertools.chain(*(page.key for page in pages)))
        assert len(set(found)) == len(found) == 5 * 44
        again = searcher.search(vector=query, k=5, page=12, dedup=dedup)
        assert again.key.tolist() == pages[11].key.tolist()


def test_the_best_of_each_group_stays():
    rng = np.random.default_rng(1)
    rows = unit(
        np.repeat(rng.standard_normal((700, 8)), 2, axis=0) + rng.standard_normal((1400, 1)) * 1e-3
    )
    kept: list[int] = []
    for row, vector in enumerate(rows):
        if len(kept) < 600 and all(vector @ rows[other] < 0.9 for other in kept):
            kept.append(row)
    assert first_of_groups(rows, 0.9, 600).tolist() == kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page": 0}, "page=0"),
        ({"threshold": float("nan")}, "threshold=nan: a cosine"),
        ({"boost": ["=1"]}, "COLUMN=WEIGHT"),
        ({"boost": {"taste": float("nan")}}, "COLUMN=WEIGHT"),
        ({"plus": ["-1:a fox"]}, "--minus pushes away"),
        ({"plus": ["1.0:"]}, "says nothing"),
        ({"minus": ["0.5:image="]}, "says nothing"),
        ({"page": 10_001}, "page=10001"),
        ({"dedup": 2.0}, "dedup=2.0"),
        ({"dedup": 0.9, "k": 20_001}, "20000 hits deep"),
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
    assert parse_wish("1.5:red fox") == Wish(1.5, "text", "red fox")
    assert parse_wish(".5: 3:2 aspect") == Wish(0.5, "text", "3:2 aspect")
    assert parse_wish("fox: a study") == Wish(1.0, "text", "fox: a study")
    assert parse_wish("2:image=https://x.org/a.jpg") == Wish(2, "image", "https://x.org/a.jpg")
    assert parse_wish("key=000010005") == Wish(1, "key", "000010005")
    assert parse_boost("aesthetic_v2=0.3") == ("aesthetic_v2", 0.3)
