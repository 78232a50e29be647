"""Real vectors: golden retrievals, clip-retrieval's own index, OpenAI's text vectors."""

import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from laionkit.core.errors import ConfigError
from laionkit.core.runner import Runner
from laionkit.search.reach import K, reranked
from laionkit.search.searcher import Searcher
from laionkit.stages.index import IndexConfig, index
from tests.search.datasets import add_embeddings


@pytest.fixture(scope="module")
def flickr(real_data, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("flickr")
    folder = real_data / "clip/flickr8k-vitb32-rows-0-399"
    vectors = np.load(folder / "image_embs_fp16.npy").reshape(400, 512)
    captions = json.loads((folder / "captions.json").read_text())
    for shard in range(4):
        rows = slice(100 * shard, 100 * shard + 100)
        add_embeddings(place, f"{shard:05d}", vectors[rows], captions[rows])
    return place


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_real_text_vectors_find_the_golden_pictures(flickr, real_data, kind):
    index(str(flickr), IndexConfig(kind=kind), runner=Runner(fresh=True, yes=True))
    searcher = Searcher(flickr)
    texts = np.load(real_data / "clip/detic-text-vectors-vitb32/coco_clip_a+cname.npy")
    names = (real_data / "clip/detic-text-vectors-vitb32/coco_names.txt").read_text().split("\n")
    golden = real_data / "expected/retrieval_flickr8k-vitb32-rows-0-399.json"
    for case in json.loads(golden.read_text()):
        row = names.index(case["query"].removeprefix("a ").removeprefix("an "))
        hits = searcher.search(vector=texts[row], k=10)
        rows = [int(key[:5]) * 100 + int(key[5:]) for key in hits.key]
        assert np.allclose(hits.match, case["top10_cos"], atol=2e-4)
        assert rows == case["top10_rows"]
        assert hits.plan.exact


@pytest.mark.parametrize(("codes_mib", "least"), [(16_384, 0.999), (0, 0.99)])
def test_codes_lose_next_to_nothing_of_real_vectors(flickr, real_data, codes_mib, least):
    """Of the ten nearest pictures to a text, how many are among those that are re-ranked."""
    config = IndexConfig(kind="ivf", lists=16, codes_mib=codes_mib)
    index(str(flickr), config, runner=Runner(fresh=True, yes=True))
    (segment,) = Searcher(flickr).segments
    assert segment.lists is not None
    texts = np.load(real_data / "clip/detic-text-vectors-vitb32/lvis_v1_clip_a+cname.npy")[::6]
    found = []
    for text in texts.astype(np.float32):
        query = text / np.linalg.norm(text)
        best = segment.vectors.search(query, K).rows
        near = segment.lists.near(query)
        coded = segment.lists.search(query, reranked(K), np.arange(16), near).rows
        found.append(np.isin(best, coded).mean())
    assert np.mean(found) >= least


def test_a_clip_retrieval_folder_is_searched_as_it_is(real_data):
    run = real_data / "clip/fashion9-clip-retrieval-run"
    searcher = Searcher(run / "index")
    texts = np.load(run / "embeddings/text_emb/text_emb_0.npy").astype(np.float32)
    theirs = faiss.read_index(str(run / "index/image.index"))
    for text in texts:
        hits = searcher.search(vector=text, k=4)
        unit = text / np.linalg.norm(text)
        scores, rows = theirs.search(unit[None], 4)
        assert hits.key.tolist() == [f"/content/catalog/{CATALOG[row]}" for row in rows[0]]
        assert np.allclose(hits.match, scores[0])
        assert hits.caption.notna().all()


def test_our_index_of_a_clip_retrieval_run_finds_what_its_own_finds(real_data, tmp_path):
    run = real_data / "clip/fashion9-clip-retrieval-run"
    vectors = np.load(run / "embeddings/img_emb/img_emb_0.npy")
    add_embeddings(tmp_path, "00000", vectors)
    index(str(tmp_path))
    ours, theirs = Searcher(tmp_path), Searcher(run / "index")
    for text in np.load(run / "embeddings/text_emb/text_emb_0.npy"):
        found = theirs.search(vector=text, k=9)
        rows = [CATALOG.index(key.rpartition("/")[2]) for key in found.key]
        mine = ours.search(vector=text, k=9)
        assert [int(key) for key in mine.key] == rows
        assert np.allclose(mine.match, found.match, atol=1e-3)


def test_a_clip_retrieval_folder_is_filtered_and_knows_what_is_alike(real_data):
    run = real_data / "clip/fashion9-clip-retrieval-run"
    searcher, vectors = Searcher(run / "index"), np.load(run / "embeddings/img_emb/img_emb_0.npy")
    captions = pq.read_table(run / "index/metadata")["caption"].to_pylist()
    shirts = [row for row, caption in enumerate(captions) if "shirt" in caption]
    hits = searcher.search(vector=vectors[0], k=9, where="caption LIKE '%shirt%'")
    assert 0 < len(shirts) < 9
    assert sorted(hits.row) == shirts
    own = f"/content/catalog/{CATALOG[2]}"
    near = searcher.search(like=own, k=9)
    truth = np.argsort(-(vectors @ vectors[2]).astype(np.float64))
    assert near.row.tolist() == [row for row in truth if row != 2]
    assert len(searcher.search(vector=vectors[0], k=9, dedup=-1)) == 1
    assert len(searcher.search(vector=vectors[0], where="image_path = 'no'")) == 0
    with pytest.raises(ConfigError, match="caption"):
        searcher.search(vector=vectors[0], where="captions = 'a'")


CATALOG = ["img1.png", "img2.png", *(f"img{i}.jpg" for i in range(3, 10))]
