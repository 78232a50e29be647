"""score: golden values from stored vectors alone, one provenance a column."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from laionkit.core.embeddings import embed_stage, score_columns, score_files
from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import FileEntry, ShardRecord, StageMade, StageRecords
from laionkit.core.runner import Runner
from laionkit.stages.score import ScoreConfig, score

B32 = {"backbone": "openai/ViT-B-32", "weights_sha256": "ab", "provenance": "declared"}


def write_embeddings(path, emb_ND, model="b32", facts=B32, shards=2):
    """Store vectors as embed would, in `shards` shards."""
    folder = Folder(path)
    records = StageRecords(folder, embed_stage(model))
    made = StageMade(stage=records.stage, format_version=1, config={"model": "m"}, facts=facts)
    records.folder.write_json("_stage.json", made.model_dump(mode="json"))
    for i, rows in enumerate(np.array_split(np.arange(len(emb_ND)), shards)):
        with folder.create(f"embeddings/{model}/img_emb/img_emb_{i}.npy") as file:
            np.save(file, emb_ND[rows])
        keys = [f"{row:05d}" for row in rows]
        metadata = folder.write_table(
            f"embeddings/{model}/metadata/metadata_{i}.parquet", pa.table({"image_path": keys})
        )
        entry = FileEntry(
            path=f"embeddings/{model}/img_emb/img_emb_{i}.npy",
            size=file.size,
            sha256=file.digest.hexdigest(),
        )
        files = {"img_emb": entry, "metadata": FileEntry.of(metadata)}
        counts = Counts.of(len(rows), {})
        records.commit(ShardRecord(shard=f"{i:05d}", fingerprint="", counts=counts, files=files))
    return folder


def values_of(folder, column):
    return [
        v for f in score_files(folder, column) for v in folder.read_table(f)["value"].to_pylist()
    ]


@pytest.fixture
def flickr(tmp_path, real_data, heads_cache):
    emb_ND = np.load(real_data / "clip/flickr8k-vitb32-rows-0-399/image_embs_fp16.npy")
    return write_embeddings(tmp_path / "data", emb_ND.reshape(len(emb_ND), -1))


def test_stored_vectors_give_the_golden_scores(flickr, real_data):
    heads = ("aesthetic-v1-b32", "simulacra-b32", "nsfw-b32")
    report = score(flickr.url, ScoreConfig(heads=heads))
    assert report.outputs == tuple(f"scores/{h.replace('-', '_')}" for h in heads)
    assert report.counts == Counts.of(1200, {})
    with (real_data / "expected/scores_flickr8k_rows_0-399.csv").open() as file:
        table = list(csv.DictReader(file))
    for golden, column in zip(
        ("laion_v1_vit_b_32", "simulacra_vit_b_32", "nsfw_vit_b_32"),
        ("aesthetic_v1_b32", "simulacra_b32", "nsfw_b32"),
        strict=True,
    ):
        expected = [float(row[golden]) for row in table]
        np.testing.assert_allclose(values_of(flickr, column), expected, rtol=1e-4, atol=1e-4)


def test_a_new_head_is_only_its_own_work(flickr):
    score(flickr.url, ScoreConfig(heads=("nsfw-b32",)))
    report = score(flickr.url, ScoreConfig(heads=("nsfw-b32", "simulacra-b32")))
    assert (report.shards, report.skipped) == (4, 2)


def test_provenance_is_in_the_file_and_in_the_record(flickr):
    score(flickr.url, ScoreConfig(heads=("nsfw-b32",)))
    made = score_columns(flickr)["nsfw_b32"]
    text = flickr.read_table(score_files(flickr, "nsfw_b32")[0]).schema.metadata[b"laionkit"]
    provenance = json.loads(text)
    assert provenance["head"] == made.config["head"] == "nsfw-b32"
    assert provenance["head_sha256"] == made.facts["head_sha256"]
    assert provenance["provenance"] == "declared"


def test_mixing_provenances_in_one_column_is_refused(flickr, real_data):
    score(flickr.url, ScoreConfig(heads=("nsfw-b32",)))
    emb_ND = np.load(real_data / "clip/flickr8k-vitb32-rows-0-399/image_embs_fp16.npy")
    write_embeddings(flickr.url, emb_ND, "other", {**B32, "weights_sha256": "cd"})
    with pytest.raises(StaleOutput, match="was made with model='b32'"):
        score(flickr.url, ScoreConfig(heads=("nsfw-b32",), as_name="other"))


def test_several_models_need_a_choice(flickr):
    write_embeddings(flickr.url, np.ones((2, 512), np.float16), "other")
    with pytest.raises(InputError, match="choose with --as NAME"):
        score(flickr.url, ScoreConfig(heads=("nsfw-b32",)))


def test_a_head_of_another_backbone_is_refused_before_any_work(flickr):
    with pytest.raises(ConfigError, match="heads that fit"):
        score(flickr.url, ScoreConfig(heads=("nsfw-b32", "aesthetic-v2")))
    assert not score_columns(flickr)


def test_a_head_of_another_backbone_is_refused_before_it_is_downloaded(flickr, monkeypatch):
    monkeypatch.setenv("LAIONKIT_HEADS", "/nowhere")
    with pytest.raises(ConfigError, match=r"aesthetic-v2 scores embeddings of openai/ViT-L-14"):
        score(flickr.url)


def test_unnormalised_vectors_are_normalised_first(tmp_path, heads_cache, real_data):
    emb_ND = np.load(real_data / "clip/flickr8k-vitb32-rows-0-399/image_embs_fp16.npy")[:9]
    unit = write_embeddings(tmp_path / "unit", emb_ND)
    long = write_embeddings(tmp_path / "long", emb_ND.astype(np.float32) * 10)
    for folder in (unit, long):
        score(folder.url, ScoreConfig(heads=("aesthetic-v1-b32",)))
    np.testing.assert_allclose(
        values_of(long, "aesthetic_v1_b32"), values_of(unit, "aesthetic_v1_b32"), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.full((2, 512), np.nan, np.float16), "img_emb_0.npy: embedding row 0 holds NaN"),
        (np.ones((2, 768), np.float16), "takes 512 dimensions, the embeddings have 768"),
        (np.ones(2, np.float16), "not rows of vectors"),
    ],
)
def test_vectors_that_are_none_are_named(rows, words, tmp_path, heads_cache):
    folder = write_embeddings(tmp_path / "data", rows, shards=1)
    with pytest.raises(InputError, match=words):
        score(folder.url, ScoreConfig(heads=("nsfw-b32",)))


def test_no_embeddings_says_what_to_run_first(tmp_path):
    with pytest.raises(InputError, match="has no embeddings: run laionkit embed"):
        score(str(tmp_path))


def test_scoring_with_several_processes_gives_the_same_bytes(flickr, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(flickr.url, copy)
    score(flickr.url, ScoreConfig(heads=("nsfw-b32",)))
    score(str(copy), ScoreConfig(heads=("nsfw-b32",)), runner=Runner(workers=2))
    for file in score_files(flickr, "nsfw_b32"):
        assert Folder(copy).read_bytes(file) == flickr.read_bytes(file)
