"""Searching: exact answers agree with numpy, filters apply inside, k edges, bad queries."""

import itertools
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laionkit.core.errors import ConfigError, InputError
from laionkit.search.searcher import Searcher
from laionkit.stages.index import IndexConfig, index
from tests.search.datasets import add_embeddings, add_scores, assert_nearest, clustered, unit

ROWS, DIM = 3000, 32


@pytest.fixture(scope="module")
def vectors():
    return clustered(ROWS, DIM)


@pytest.fixture(scope="module", params=["exact", "ivf"])
def dataset(request, vectors, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    for shard in range(3):
        part = vectors[shard * 1000 : (shard + 1) * 1000]
        keys = add_embeddings(place, f"{shard:05d}", part)
        values = [int(key) % 997 / 997 for key in keys]
        add_scores(place, "aesthetic_v2", f"{shard:05d}", keys, values)
    index(str(place), IndexConfig(kind=request.param, lists=24))
    return place


@pytest.fixture(scope="module")
def searcher(dataset):
    return Searcher(dataset)


@pytest.fixture(scope="module")
def keys():
    return [f"{row // 1000:05d}{row % 1000:04d}" for row in range(ROWS)]


def test_a_query_finds_what_numpy_finds(searcher, vectors, keys):
    query = unit(np.random.default_rng(1).standard_normal((1, DIM)))[0]
    hits = searcher.search(vector=query, k=10)
    assert_nearest(hits, keys, vectors, query, 10)
    assert hits.plan.exact
    assert list(hits.columns)[:5] == ["key", "match", "caption", "url", "aesthetic_v2"]
    assert list(hits.columns)[-2:] == ["shard", "row"]
    first = hits.iloc[0]
    assert first.caption == f"picture {first.key}"
    assert first.url == f"https://example.org/{first.key}.jpg"
    assert first.key == f"{first['shard']}{first.row:04d}"
    assert first.aesthetic_v2 == pytest.approx(int(first.key) % 997 / 997)


@given(
    low=st.floats(0, 1), width=st.integers(0, 1100), k=st.integers(1, 50), seed=st.integers(0, 99)
)
@settings(max_examples=40)
def test_any_filter_gives_what_numpy_gives(dataset, searcher, vectors, keys, low, width, k, seed):
    query = unit(np.random.default_rng(seed).standard_normal((1, DIM)))[0]
    hits = searcher.search(
        vector=query, k=k, where=f"aesthetic_v2 >= {low:.6f} and original_width < {width}"
    )
    numbers = np.array([int(key) for key in keys])
    values = (numbers % 997 / 997).astype(np.float32)
    keep = (values >= float(f"{low:.6f}")) & (numbers % 1000 < width)
    assert_nearest(hits, keys, vectors, query, k, keep)
    assert hits.plan.matches == keep.sum()


@given(
    seed=st.integers(0, 99),
    ks=st.lists(st.integers(1, 600), min_size=2, max_size=5).map(sorted),
    where=st.sampled_from([None, "aesthetic_v2 >= 0.5", "original_width < 40"]),
)
@settings(max_examples=30)
def test_top_k_is_a_prefix_of_top_k_plus_one(searcher, seed, ks, where):
    query = unit(np.random.default_rng(seed).standard_normal((1, DIM)))[0]
    answers = [searcher.search(vector=query, k=k, where=where) for k in (*ks, ks[-1] + 1)]
    for short, long in itertools.pairwise(answers):
        assert short.plan.exact
        assert long.key.tolist()[: len(short)] == short.key.tolist()
        assert long.match.tolist()[: len(short)] == short.match.tolist()


def test_k_above_the_rows_gives_all_rows(searcher):
    assert len(searcher.search(vector=np.ones(DIM), k=100_000)) == ROWS


def test_an_empty_filter_is_an_empty_answer(searcher):
    hits = searcher.search(vector=np.ones(DIM), where="aesthetic_v2 > 5")
    assert len(hits) == 0
    assert hits.plan.exact
    assert "caption" in hits.columns


def test_a_threshold_only_takes_hits_away(searcher):
    query = np.ones(DIM)
    full = searcher.search(vector=query, k=100)
    limit = float(full.match[30])
    assert searcher.search(vector=query, k=100, threshold=limit).equals(full.iloc[:31])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"vector": np.full(DIM, np.nan)}, "NaN"),
        ({"vector": np.zeros(DIM)}, "only zeros"),
        ({"vector": np.ones(DIM + 1)}, r"shape \(33,\).*holds vectors of 32"),
        ({"vector": ["red"]}, "no list of numbers"),
        ({"vector": np.full(DIM, 1j)}, "no list of numbers"),
        ({"vector": "red.npy"}, "red.npy is no readable .npy file: No such file"),
        ({"like": 147}, "has no key 147"),
        ({"image": np.zeros((8, 8))}, r"holds float64 of shape \(8, 8\): pixels are uint8"),
        ({"text": "a red fox"}, "do not say which model"),
    ],
)
def test_an_unusable_query_is_one_clear_line(searcher, query, message):
    with pytest.raises(InputError, match=message):
        searcher.search(**query)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 100_001}, "k=100001"),
        ({"k": 2.5}, "k=2.5: a whole number"),
        ({"page": "2"}, "page='2': a whole number"),
        ({"latency_ms": float("nan")}, "latency_ms=nan"),
        ({"where": "aesthetik_v2 > 1"}, "aesthetic_v2"),
        ({"where": "aesthetic_v2 > 'a'"}, r"--where .*Could not convert string 'a'"),
        ({"vector": None}, "say what to look for"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(searcher, settings, message):
    with pytest.raises(ConfigError, match=message):
        searcher.search(**{"vector": np.ones(DIM), **settings})


def test_a_number_of_numpys_is_a_number(searcher):
    query = np.ones(DIM)
    plain, numpys = (searcher.search(vector=query, k=k, page=k) for k in (3, np.int64(3)))
    assert plain.equals(numpys)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_a_vectors_length_is_no_matter(searcher, scale):
    query = np.random.default_rng(2).standard_normal(DIM)
    plain, scaled = searcher.search(vector=query), searcher.search(vector=query * scale)
    assert plain.key.tolist() == scaled.key.tolist()


def test_rows_as_near_as_can_be_told_are_all_weighed(tmp_path):
    """Lengths that stray from 1 rank rows by product otherwise than by cosine."""
    rng = np.random.default_rng(0)
    rows = unit(np.ones((400, 32)) + 0.002 * rng.standard_normal((400, 32)))
    rows = (rows * (1 + 9e-4 * rng.uniform(-1, 1, (400, 1)))).astype(np.float16)
    keys = add_embeddings(tmp_path, "00000", rows)
    index(str(tmp_path))
    query = unit(np.ones((1, 32)) + 0.01 * rng.standard_normal((1, 32)))[0]
    hits = Searcher(tmp_path).search(vector=query, k=10)
    assert_nearest(hits, keys, rows, query, 10)
    assert hits.plan.exact


def test_plain_faiss_opens_the_index_and_finds_the_same(dataset, searcher, vectors):
    plain = faiss.read_index(str(dataset / "index/toy/image.index"))
    if hasattr(plain, "nprobe"):
        plain.nprobe = plain.nlist
    parts = sorted((dataset / "index/toy/metadata").glob("*.parquet"))
    paths = [key for part in parts for key in pq.read_table(part)["image_path"].to_pylist()]
    assert plain.ntotal == len(paths) == ROWS
    query = vectors[77].astype(np.float32)
    scores, found = plain.search(query[None], 5)
    hits = searcher.search(vector=query, k=8)
    # 8-bit codes, not re-ranked, may swap rows as near as they tell.
    assert {paths[row] for row in found[0]} <= set(hits.key)
    assert paths[found[0][0]] == hits.key[0]
    assert np.allclose(scores[0], hits.match[:5], atol=5e-3)
