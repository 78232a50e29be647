"""Folders of another's making: every kind of faiss index, filters, damage, copies from afar."""

import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.backends.knn_foreign import ForeignStore
from laionkit.core.errors import InputError
from laionkit.search.searcher import Searcher
from laionkit.stages.index import IndexConfig, index
from tests.search.datasets import add_embeddings, clustered, cosines, unit

ROWS, DIM = 4000, 32
VECTORS = clustered(ROWS, DIM, seed=21)
KINDS = ["Flat", "HNSW16", "IVF16,SQ8", "PCA16,IVF16,SQ8", "IVF16,PQ8x4fsr", "PQ8x4fs"]


def write_folder(place: Path, kind: str, rows: int = ROWS) -> Path:
    """What clip-retrieval leaves: image.index and metadata/ in two files."""
    (place / "metadata").mkdir(parents=True)
    made = faiss.index_factory(DIM, kind, faiss.METRIC_INNER_PRODUCT)
    made.train(VECTORS[:rows].astype(np.float32))
    made.add(VECTORS[:rows].astype(np.float32))
    faiss.write_index(made, str(place / "image.index"))
    for part, (start, stop) in enumerate([(0, rows // 3), (rows // 3, rows)]):
        table = {
            "image_path": [f"{row:09d}" for row in range(start, stop)],
            "caption": [f"picture {row}" for row in range(start, stop)],
            "NSFW": pa.array([row % 100 / 100 for row in range(start, stop)], pa.float64()),
        }
        pq.write_table(pa.table(table), place / f"metadata/metadata_{part}.parquet")
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_index_gives_k_hits_under_any_filter(tmp_path, kind):
    searcher = Searcher(write_folder(tmp_path / "index", kind))
    query = unit(VECTORS[5:6])[0]
    for where, matches in ((None, ROWS), ("NSFW < 0.5", ROWS // 2), ("nsfw = 0.07", ROWS // 100)):
        for k in (10, 500):
            hits = searcher.search(vector=query, k=k, where=where)
            assert len(hits) == min(k, matches) == len(set(hits.key))
            assert hits.plan.matches == matches
            assert hits.plan.exact == (kind == "Flat")
            rows = hits.row.to_numpy()
            assert hits.key.tolist() == [f"{row:09d}" for row in rows]
            if where:
                keep = rows % 100 == 7 if "=" in where else rows % 100 < 50
                assert keep.all()
            if where is None and kind == "Flat":
                assert np.allclose(
                    hits.match, np.sort(cosines(VECTORS, query))[::-1][:k], atol=2e-3
                )
    if "PQ" not in kind and "PCA" not in kind:
        assert searcher.search(vector=query, k=1).key[0] == "000000005"


@pytest.mark.parametrize("kind", ["Flat", "HNSW16", "IVF16,SQ8"])
def test_more_like_a_key_and_no_duplicates(tmp_path, kind):
    searcher = Searcher(write_folder(tmp_path / "index", kind, 3000))
    hits = searcher.search(like="000000007", k=20)
    truth = np.argsort(-cosines(VECTORS[:3000], VECTORS[7].astype(np.float32)))[1:21]
    assert len(set(hits.row) & set(truth.tolist())) >= 17
    assert "000000007" not in set(hits.key)
    distinct = searcher.search(like="000000007", k=20, dedup=0.8)
    assert len(distinct) == 20
    near = VECTORS[distinct.row].astype(np.float32)
    assert (near @ near.T)[~np.eye(20, dtype=bool)].max() < 0.82


def test_packed_codes_cannot_be_compared_and_say_so(tmp_path):
    searcher = Searcher(write_folder(tmp_path / "index", "IVF16,PQ8x4fsr"))
    with pytest.raises(InputError, match="adopt its embeddings"):
        searcher.search(like="000000007")


def test_what_is_damaged_or_does_not_agree_is_refused(tmp_path):
    place = write_folder(tmp_path / "index", "Flat", 900)
    with pytest.raises(InputError, match="no key 'x'"):
        Searcher(place).search(like="x")
    with pytest.raises(InputError, match="do not say which model"):
        Searcher(place).search("a fox")
    whole = (place / "image.index").read_bytes()
    (place / "image.index").write_bytes(whole[:-5000])
    with pytest.raises(InputError, match="no readable faiss index"):
        Searcher(place)
    (place / "image.index").write_bytes(whole)
    (place / "metadata/metadata_1.parquet").unlink()
    with pytest.raises(InputError, match=r"image.index holds 900 vectors and metadata/ 300 rows"):
        Searcher(place)
    (place / "metadata/metadata_0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not readable parquet"):
        Searcher(place)
    (place / "metadata/metadata_0.parquet").unlink()
    with pytest.raises(InputError, match="no metadata"):
        Searcher(place)


def test_an_index_by_distance_is_refused(tmp_path):
    faiss.write_index(faiss.IndexFlatL2(4), str(tmp_path / "image.index"))
    with pytest.raises(InputError, match="ranks by distance"):
        ForeignStore(tmp_path / "image.index")


@pytest.fixture
def s3(monkeypatch, tmp_path):
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("LAIONKIT_INDEXES", str(tmp_path / "cache"))
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem()
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_folder_on_s3_is_copied_once_and_again_when_it_changes(s3, tmp_path):
    s3.mkdir("bucket")
    s3.put(str(write_folder(tmp_path / "one", "Flat", 600)), "bucket/index", recursive=True)
    cache = tmp_path / "cache"
    for _ in range(2):
        hits = Searcher("s3://bucket/index").search(vector=VECTORS[9], k=3, where="NSFW < 0.1")
        assert hits.key[0] == "000000009"
        assert len(list(cache.iterdir())) == 1
    other = write_folder(tmp_path / "two", "Flat", 300)
    s3.rm("bucket/index", recursive=True)
    s3.put(str(other), "bucket/index", recursive=True)
    s3.invalidate_cache()
    assert Searcher("s3://bucket/index").count == 300
    assert len(list(cache.iterdir())) == 2


def test_ours_is_laid_out_as_clip_retrieval_lays_it_out(tmp_path):
    """Its folder of index and metadata, opened as any other folder of that kind."""
    add_embeddings(tmp_path, "00000", VECTORS[:700])
    add_embeddings(tmp_path, "00001", VECTORS[700:1500])
    index(str(tmp_path), IndexConfig(kind="ivf", lists=16))
    place = tmp_path / "index/toy"
    described = json.loads((place / "image.json").read_text())
    assert described["nb vectors"] == 1500
    assert described["size in bytes"] == (place / "image.index").stat().st_size
    ours, theirs = Searcher(tmp_path), Searcher(place)
    for row in (3, 1200):
        found = [
            s.search(vector=VECTORS[row], k=5, where="original_width < 900") for s in (ours, theirs)
        ]
        assert found[0].key[0] == found[1].key[0]
        assert found[1].caption.notna().all()
