"""embed on real shards: members in any order, real photographs, vectors others made."""

import io
import shutil

import numpy as np
from PIL import Image

from laionkit.backends.clip import load_model
from laionkit.core.embeddings import list_embeddings, score_files
from laionkit.core.files import Folder
from laionkit.core.runner import Runner
from laionkit.core.shards import list_shards
from laionkit.core.tars import image_member, read_contents, read_member
from laionkit.ops.vectors import unit_rows
from laionkit.stages.adopt import AdoptConfig, adopt
from laionkit.stages.embed import EmbedConfig, embed
from laionkit.stages.score import ScoreConfig, score

CPU = Runner(device="cpu")


def test_a_real_shard_of_img2dataset_is_embedded_in_place(real_data, small_clip, tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    shutil.copy(real_data / "images/cc12m-webdataset-shard/cc12m-train-0000.tar", tars)
    adopt(str(tars), str(tmp_path / "data"))
    spec = f"local-dir:{small_clip}"
    config = EmbedConfig(model=spec, as_name="small", precision="fp32")
    report = embed(str(tmp_path / "data"), config, runner=CPU)
    folder = Folder(tmp_path / "data")
    (shard,) = list_shards(folder)
    (ref,) = list_embeddings(folder, "small")
    assert report.counts.ok == report.counts.seen == ref.rows == shard.samples
    with folder.open(shard.tar) as file:
        samples = read_contents(file).samples
        keys = folder.read_table(ref.metadata)["image_path"].to_pylist()
        assert keys == sorted(samples)
        pictures = []
        for key in keys[:20]:
            member = image_member(samples[key])
            assert member is not None
            data = read_member(file, member[1])
            pictures.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    expected = load_model(spec, device="cpu", precision="fp32").encode_images(pictures)
    stored = unit_rows(np.load(io.BytesIO(folder.read_bytes(ref.image)))[:20])
    assert (stored * expected).sum(axis=1).min() > 0.9999


def test_adopted_vectors_of_clip_retrieval_are_scored_as_they_are(real_data, tmp_path, heads_cache):
    run = real_data / "clip/fashion9-clip-retrieval-run/embeddings"
    config = AdoptConfig(model="ViT-B-32-quickgelu/openai")
    adopt(str(run), str(tmp_path / "data"), config)
    score(str(tmp_path / "data"), ScoreConfig(heads=("aesthetic-v1-b32", "clip_similarity")))
    folder = Folder(tmp_path / "data")
    rows = folder.read_table(score_files(folder, "aesthetic_v1_b32")[0]).to_pylist()
    golden = (real_data / "expected/scores_fashion9.csv").read_text().splitlines()[1:]
    expected = [float(line.split(",")[2]) for line in golden]
    np.testing.assert_allclose([row["value"] for row in rows], expected, rtol=2e-3, atol=2e-3)
    similar = folder.read_table(score_files(folder, "clip_similarity")[0])["value"].to_pylist()
    assert all(0.1 < value < 0.45 for value in similar)
