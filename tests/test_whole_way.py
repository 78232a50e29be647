"""Real photographs over real HTTP through every stage, by the command line."""

import csv
import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from laionkit import Searcher, table
from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.core.status import status


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def photographs(real_data):
    """120 labelled photographs on loopback, as (url, caption), and one link to nothing."""
    folder = real_data / "images/imagenet-labelled"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder / "jpg")))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    with (folder / "labels.csv").open() as file:
        rows = [(f"{base}/{r['file']}", f"a photo of a {r['label']}") for r in csv.DictReader(file)]
    yield [*rows, (f"{base}/gone.jpg", "nothing")]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def links(photographs, tmp_path) -> Path:
    urls, texts = zip(*photographs, strict=True)
    pq.write_table(pa.table({"URL": urls, "TEXT": texts}), tmp_path / "links.parquet")
    return tmp_path / "links.parquet"


# webdataset leaves the shards it read to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_photographs_go_the_whole_way(laionkit, links, tmp_path, photographs):
    dataset = tmp_path / "set"
    for command in (
        ("metadata", links, dataset, "--shard-size", 100),
        ("fetch", dataset, "--allow-private", "--image-size", 128),
        ("embed", dataset, "--model", "tiny"),
        ("index", dataset),
        ("subset", dataset, "--name", "some", "--where", "width >= height"),
    ):
        ran = laionkit(*command, "--json", "--quiet")
        assert ran.code == 0, f"{command}: {ran.err}"
        counts = ran.json()["counts"]
        assert counts["in"] == counts["ok"] + sum(counts["reasons"].values())
    assert_counts(dataset, photographs)
    assert_embeddings_align(dataset)
    assert_query_finds_its_own_picture(laionkit, dataset)
    assert_subset_loads(dataset)


def assert_counts(dataset: Path, photographs) -> None:
    counts = {stage.stage: stage.counts for stage in status(str(dataset))}
    assert counts["fetch"].seen == len(photographs)
    assert counts["fetch"].reasons == {"http_not_found": 1}
    assert counts["embed/tiny"].ok == len(photographs) - 1


def assert_embeddings_align(dataset: Path) -> None:
    for record in StageRecords(Folder(dataset), "embed/tiny").all():
        vectors = np.load(dataset / record.files["img_emb"].path)
        keys = pq.read_table(dataset / record.files["metadata"].path)["image_path"].to_pylist()
        assert vectors.dtype == np.float16
        assert len(vectors) == len(keys) == record.counts.ok
        assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-2)
        assert keys == sorted(keys)


def assert_query_finds_its_own_picture(laionkit, dataset: Path) -> None:
    caption = table(str(dataset)).filter("status = 'success'").order("key").limit(1).df()
    url, key = caption["url"][0], caption["key"][0]
    ran = laionkit("query", dataset, "a photo", "--where", f"url = '{url}'", "--json")
    assert ran.code == 0, ran.err
    assert [hit["key"] for hit in ran.json()["hits"]] == [key]


def assert_subset_loads(dataset: Path) -> None:
    folder = dataset / "subsets/some"
    sizes = json.loads((folder / "sizes.json").read_text())
    kept = pq.read_table(folder / "kept.parquet")
    dropped = pq.read_table(folder / "dropped.parquet")
    assert kept.num_rows == sum(sizes.values())
    assert kept.num_rows + dropped.num_rows == 121
    shards = [str(folder / name) for name in sorted(sizes)]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, nodesplitter=None))
    assert len(samples) == kept.num_rows
    assert all({"jpg", "txt", "json"} <= set(sample) for sample in samples)


def test_an_adopted_clip_retrieval_run_finds_what_its_own_index_finds(
    laionkit, real_data, tmp_path
):
    run = real_data / "clip/fashion9-clip-retrieval-run"
    dataset = tmp_path / "set"
    declared = ("--backbone-id", "openai/ViT-B-32")
    assert laionkit("adopt", run / "embeddings", dataset, *declared, "-q").code == 0
    assert laionkit("index", dataset, "-q").code == 0
    ours, theirs = Searcher(dataset), faiss.read_index(str(run / "index/image.index"))
    keys = pq.read_table(run / "index/metadata/metadata_0.parquet")["image_path"].to_pylist()
    for text in np.load(run / "embeddings/text_emb/text_emb_0.npy").astype(np.float32):
        cosines, rows = theirs.search(text[None] / np.linalg.norm(text), 5)
        hits = ours.search(vector=text, k=5)
        assert hits.key.tolist() == [keys[row] for row in rows[0]]
        assert np.allclose(hits.match, cosines[0], atol=2e-3)


def test_a_hit_among_the_users_own_pictures_says_where_it_lies(laionkit, real_data, tmp_path):
    pictures, dataset = real_data / "images/exif-orientation", tmp_path / "album"
    for command in (
        ("metadata", pictures, dataset),
        ("fetch", dataset, "--image-size", 64),
        ("embed", dataset, "--model", "tiny"),
        ("index", dataset),
    ):
        assert laionkit(*command, "--quiet").code == 0
    (hit,) = laionkit("query", dataset, "a picture", "-k", 1, "--json").json()["hits"]
    assert Path(hit["url"]).parent == pictures
