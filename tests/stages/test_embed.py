"""embed: what open_clip gives, aligned, resumable, every sample accounted for."""

import io
import json
import re
import shutil
import weakref

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from laionkit.backends.clip import load_model
from laionkit.backends.clip.batch import choose_batch
from laionkit.backends.clip.model import ClipModel
from laionkit.core.embeddings import list_embeddings, model_made, score_files
from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.core.table import columns
from laionkit.ops.vectors import unit_rows
from laionkit.stages.embed import EmbedConfig, embed, worker
from laionkit.stages.embed.worker import EmbedWorker
from laionkit.stages.score import ScoreConfig, score
from tests.small_clip import write_small_clip
from tests.stages.shards import picture, shard_of, write_shard, write_shards

CPU = Runner(device="cpu")


@pytest.fixture(scope="module")
def settings(small_clip):
    return {"model": f"local-dir:{small_clip}", "precision": "fp32", "as_name": "small"}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, settings):
    """Three shards of unlike size, embedded in batches of 3."""
    path = tmp_path_factory.mktemp("embedded")
    folder = write_shards(path, {f"{n:05d}": shard_of(n, n * 3 + 1) for n in range(3)})
    report = embed(str(path), EmbedConfig(**settings, batch_size=3), runner=CPU)
    assert report.counts == Counts.of(12, {})
    return folder


def vectors(folder: Folder, kind: str = "image", model: str = "small") -> np.ndarray:
    refs = list_embeddings(folder, model)
    return np.concatenate([np.load(io.BytesIO(folder.read_bytes(getattr(r, kind)))) for r in refs])


def test_vectors_are_what_open_clip_gives(embedded, small_clip):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{small_clip}")
    samples = [s for n in range(3) for s in shard_of(n, n * 3 + 1)]
    images = torch.stack([transform(Image.open(io.BytesIO(data))) for _, data, _ in samples])
    tokens = open_clip.get_tokenizer(f"local-dir:{small_clip}")([c for _, _, c in samples])
    with torch.inference_mode():
        image_ND = model.eval().encode_image(images, normalize=True).numpy()
        text_ND = model.encode_text(tokens, normalize=True).numpy()
    assert (unit_rows(vectors(embedded)) * image_ND).sum(axis=1).min() > 0.9999
    assert (unit_rows(vectors(embedded, "text")) * text_ND).sum(axis=1).min() > 0.9999
    assert vectors(embedded).dtype == vectors(embedded, "text").dtype == np.float16


def test_the_layout_is_clip_retrievals(embedded):
    assert embedded.names("embeddings/small/img_emb") == [f"img_emb_{n:05d}.npy" for n in range(3)]
    assert embedded.names("embeddings/small/text_emb")[0] == "text_emb_00000.npy"
    table = embedded.read_table("embeddings/small/metadata/metadata_00001.parquet")
    assert table.column_names[:2] == ["image_path", "caption"]
    assert table["image_path"].to_pylist() == [f"00001{i:04d}" for i in range(4)]
    assert table["url"].to_pylist()[3] == "http://x/000010003"


def test_similarity_is_scored_in_the_same_pass(embedded):
    expected = (vectors(embedded).astype(float) * vectors(embedded, "text")).sum(axis=1)
    files = score_files(embedded, "clip_similarity")
    values = [v for f in files for v in embedded.read_table(f)["value"].to_pylist()]
    np.testing.assert_allclose(values, expected, atol=2e-3)
    provenance = json.loads(embedded.read_table(files[0]).schema.metadata[b"laionkit"])
    assert provenance["model"] == "small"
    assert provenance["backbone"].startswith("sha256:")


def test_scoring_later_gives_the_same_values(embedded, settings, tmp_path):
    before = [embedded.read_bytes(f) for f in score_files(embedded, "clip_similarity")]
    folder = write_shards(tmp_path, {f"{n:05d}": shard_of(n, n * 3 + 1) for n in range(3)})
    config = EmbedConfig(**settings, batch_size=3)
    embed(str(tmp_path), config, runner=CPU)
    for file in score_files(folder, "clip_similarity"):
        folder.remove(file)
        folder.remove(f".laionkit/score/clip_similarity/{file[-13:-8]}.json")
    score(str(tmp_path), ScoreConfig(heads=("clip_similarity",)))
    assert [folder.read_bytes(f) for f in score_files(folder, "clip_similarity")] == before


def test_a_second_models_cosines_have_a_column_of_their_own(settings, tmp_path):
    dataset = tmp_path / "dataset"
    folder = write_shards(dataset, {"00000": shard_of(0, 4)})
    (tmp_path / "other").mkdir()
    other = f"local-dir:{write_small_clip(tmp_path / 'other', seed=1)}"
    embed(str(dataset), EmbedConfig(**settings, batch_size=3), runner=CPU)
    second = EmbedConfig(model=other, precision="fp32", as_name="Other-1", batch_size=3)
    report = embed(str(dataset), second, runner=CPU)
    assert "scores/clip_similarity_other_1" in report.outputs
    for column, model in {"clip_similarity": "small", "clip_similarity_other_1": "Other-1"}.items():
        values = folder.read_table(score_files(folder, column)[0])["value"].to_numpy()
        images, texts = (unit_rows(vectors(folder, kind, model)) for kind in ("image", "text"))
        np.testing.assert_allclose(values, (images * texts).sum(axis=1), atol=1e-6)
    heads = ScoreConfig(heads=("clip_similarity",), as_name="Other-1")
    assert score(str(dataset), heads).skipped == 1


def test_facts_say_whose_embeddings_these_are(embedded):
    facts = model_made(embedded, "small").facts
    assert facts["dim"] == 32
    assert facts["backbone"] == f"sha256:{facts['weights_sha256']}"
    assert model_made(embedded, "small").config["batch_size"] == 3


def test_a_second_run_does_nothing_and_auto_settings_are_those_stored(embedded, settings):
    report = embed(str(embedded), EmbedConfig(**settings), runner=CPU)
    assert (report.skipped, report.shards, report.counts.ok) == (3, 3, 12)


def test_another_config_is_stale(embedded, settings):
    with pytest.raises(StaleOutput, match=r"batch_size=3; this run has batch_size=4"):
        embed(str(embedded), EmbedConfig(**settings, batch_size=4), runner=CPU)


def test_two_runs_give_the_same_bytes_and_shards_can_be_added(embedded, settings, tmp_path):
    folder = write_shards(tmp_path, {"00002": shard_of(2, 7)})
    config = EmbedConfig(**settings, batch_size=3)
    embed(str(tmp_path), config, runner=CPU)
    for n in (0, 1):
        write_shard(folder, f"{n:05d}", shard_of(n, n * 3 + 1))
    assert embed(str(tmp_path), config, runner=CPU).skipped == 1
    for kind in ("img_emb", "text_emb", "metadata", "dropped"):
        for name in folder.names(f"embeddings/small/{kind}"):
            path = f"embeddings/small/{kind}/{name}"
            assert folder.read_bytes(path) == embedded.read_bytes(path)


def test_every_sample_is_accounted_for(tmp_path, settings):
    samples = [
        ("000000000", picture(0), "good"),
        ("000000001", b"<html>not found</html>", "html"),
        ("000000002", picture(2)[:400], "cut"),
        ("000000003", picture(3, kind="PNG"), None),
        ("000000004", picture(4, kind="WEBP"), b"na\xefve \xff"),
        ("000000005", picture(5), "long " * 5000),
        ("000000006", picture(6), "   "),
        ("000000007", b"", "empty"),
    ]
    folder = write_shards(tmp_path, {"00000": samples, "00001": [], "00002": shard_of(2, 1)})
    report = embed(str(tmp_path), EmbedConfig(**settings, batch_size=4), runner=CPU)
    assert report.counts.seen == 9
    assert report.counts.ok == 6
    dropped = folder.read_table("embeddings/small/dropped/dropped_00000.parquet").to_pylist()
    assert [row["key"][-1] for row in dropped] == ["1", "2", "7"]
    assert dropped[0]["reason"] == "not_an_image"
    table = folder.read_table("embeddings/small/metadata/metadata_00000.parquet")
    assert [key[-1] for key in table["image_path"].to_pylist()] == list("03456")
    assert table["caption"].to_pylist()[2] == "na\ufffdve \ufffd"
    assert len(vectors(folder)) == len(vectors(folder, "text")) == 6
    np.testing.assert_allclose(np.linalg.norm(vectors(folder).astype(float), axis=1), 1, atol=2e-3)
    values = folder.read_table(score_files(folder, "clip_similarity")[0])["value"].to_pylist()
    assert [value is None for value in values] == [False, True, False, False, True]


@pytest.fixture
def broken_clip(small_clip, tmp_path):
    """The small CLIP with one token's vector, or the pictures' projection, that is no number."""

    def write(name: str, rows: object) -> str:
        folder = tmp_path / "broken"
        folder.mkdir()
        shutil.copy(small_clip / "open_clip_config.json", folder)
        state = load_file(small_clip / "open_clip_model.safetensors")
        state[name][rows] = float("nan")
        save_file(state, folder / "open_clip_model.safetensors")
        return f"local-dir:{folder}"

    return write


def test_a_sample_that_gets_no_vector_is_lost_with_a_reason(broken_clip, tmp_path):
    zebra = open_clip.get_tokenizer("ViT-B-32").encode("zebra")
    model = broken_clip("token_embedding.weight", zebra)
    samples = [(key, data, "a zebra" if key[-1] == "1" else c) for key, data, c in shard_of(0, 4)]
    folder = write_shards(tmp_path / "data", {"00000": samples})
    config = EmbedConfig(model=model, precision="fp32", as_name="small", batch_size=3)
    report = embed(folder.url, config, runner=CPU)
    assert report.counts == Counts.of(3, {"engine_failed": 1})
    assert len(vectors(folder)) == len(vectors(folder, "text")) == 3
    (ref,) = list_embeddings(folder, "small")
    keys = folder.read_table(ref.metadata)["image_path"].to_pylist()
    assert keys == [key for key, _, caption in samples if caption != "a zebra"]
    assert folder.read_table(score_files(folder, "clip_similarity")[0])["key"].to_pylist() == keys
    (lost,) = folder.read_table("embeddings/small/dropped/dropped_00000.parquet").to_pylist()
    assert lost["detail"] == "the model gave no vector in fp32"


def test_weights_that_give_no_vector_at_all_are_one_line(broken_clip, tmp_path):
    folder = write_shards(tmp_path / "data", {"00000": shard_of(0, 2)})
    config = EmbedConfig(model=broken_clip("visual.proj", ...), as_name="small")
    with pytest.raises(InputError, match="its weights are broken, or want --precision fp32"):
        embed(folder.url, config, runner=CPU)


def test_a_corrupt_tar_keeps_its_good_samples(tmp_path, settings):
    folder = write_shards(tmp_path, {"00000": shard_of(0, 5)})
    tar = tmp_path / "shards/00000.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    report = embed(str(tmp_path), EmbedConfig(**settings, batch_size=4), runner=CPU)
    assert report.counts.ok > 0
    assert report.counts.reasons == {"corrupt_tar": 5 - report.counts.ok}
    assert len(vectors(folder)) == report.counts.ok


def test_captions_can_be_left_out(tmp_path, settings):
    folder = write_shards(tmp_path, {"00000": shard_of(0, 2)})
    embed(str(tmp_path), EmbedConfig(**settings, text=False), runner=CPU)
    assert list_embeddings(folder, "small")[0].text is None
    assert not folder.exists("scores/clip_similarity")
    with pytest.raises(ConfigError, match="without captions"):
        score(str(tmp_path), ScoreConfig(heads=("clip_similarity",)))


def test_no_model_lists_five_good_ones(tmp_path):
    write_shards(tmp_path, {"00000": shard_of(0, 1)})
    with pytest.raises(ConfigError, match=r"Five good choices: ViT-L-14-quickgelu/openai.*1.7 GB"):
        embed(str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"batch_size": 0}, "batch_size=0: Input should be 'auto' or greater than or equal to 1"),
        ({"decoders": "x"}, "decoders='x': Input should be 'auto' or a valid integer"),
        ({"as_name": "../x"}, r"as='\.\./x' cannot be a folder's name.*as in x"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(setting, words, tmp_path, settings):
    write_shards(tmp_path, {"00000": shard_of(0, 1)})
    with pytest.raises(ConfigError, match=words) as caught:
        embed(str(tmp_path), EmbedConfig.build({**settings, **setting}, "embed"), runner=CPU)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "embeddings").exists()


def test_a_folder_without_shards_says_what_to_run_first(tmp_path, settings):
    with pytest.raises(InputError, match="no image shards: run laionkit fetch or adopt"):
        embed(str(tmp_path), EmbedConfig(**settings))


def test_words_become_columns_in_the_pass_and_later_alike(tmp_path, settings):
    folder = write_shards(tmp_path / "data", {"00000": shard_of(0, 3)})
    (tmp_path / "kinds.txt").write_text("a red thing\na blue thing\n")
    heads, labels = ('warm=prompt:"red" vs "blue"',), str(tmp_path / "kinds.txt")
    embed(folder.url, EmbedConfig(**settings, heads=heads, labels=labels), runner=CPU)
    names = ("warm", "kinds", "kinds_probability")
    before = {name: folder.read_bytes(f"scores/{name}/00000.parquet") for name in names}
    assert set(folder.read_table("scores/kinds/00000.parquet")["value"].to_pylist()) <= {
        "a red thing",
        "a blue thing",
    }
    kinds = {info.name: info.type for info in columns(folder.url)}
    assert [kinds[name] for name in names] == ["FLOAT", "VARCHAR", "FLOAT"]
    for name in names:
        folder.remove(f".laionkit/score/{name}/00000.json")
        folder.remove(f"scores/{name}/00000.parquet")
    score(folder.url, ScoreConfig(heads=heads))
    score(folder.url, ScoreConfig(labels=labels))
    assert before == {name: folder.read_bytes(f"scores/{name}/00000.parquet") for name in names}


def test_a_head_asked_for_later_says_which_command_fills_the_gap(tmp_path, settings, caplog):
    folder = write_shards(tmp_path, {"00000": shard_of(0, 1)})
    embed(folder.url, EmbedConfig(**settings), runner=CPU)
    write_shard(folder, "00001", shard_of(1, 1))
    embed(folder.url, EmbedConfig(**settings, heads=('warm=prompt:"red" vs "blue"',)), runner=CPU)
    assert "1 shards were embedded before warm was asked for" in caplog.text


def test_a_batch_that_does_not_fit_is_halved_and_said(tmp_path, settings, caplog, monkeypatch):
    whole = open_clip.CLIP.encode_image

    def small_memory(self, image, normalize=False):
        if len(image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, image, normalize)

    folder = write_shards(tmp_path / "a", {"00000": shard_of(0, 7)})
    embed(folder.url, EmbedConfig(**settings, batch_size=2), runner=CPU)
    monkeypatch.setattr(open_clip.CLIP, "encode_image", small_memory)
    halved = write_shards(tmp_path / "b", {"00000": shard_of(0, 7)})
    embed(halved.url, EmbedConfig(**settings, batch_size=8), runner=CPU)
    assert re.search(r"out of memory on cpu: going on with [13] pictures", caplog.text)
    np.testing.assert_allclose(vectors(halved), vectors(folder), atol=1e-3)
    assert StageRecords(halved, "embed/small").read("00000").extra["pictures_at_once"] in (1, 3)


def test_one_out_of_memory_in_a_run_loses_nothing(embedded, tmp_path, settings, monkeypatch):
    """torch.OutOfMemoryError once, in the captions' tower: all rows come, in their order."""
    whole, raised = ClipModel.embed_tokens, []

    def once(self, tokens_NT):
        if not raised and len(tokens_NT) > 1:
            raised.append(len(tokens_NT))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, tokens_NT)

    monkeypatch.setattr(ClipModel, "embed_tokens", once)
    folder = write_shards(tmp_path, {f"{n:05d}": shard_of(n, n * 3 + 1) for n in range(3)})
    embed(folder.url, EmbedConfig(**settings, batch_size=3), runner=Runner(device="cpu"))
    assert raised
    np.testing.assert_allclose(vectors(folder, "text"), vectors(embedded, "text"), atol=1e-3)


def test_a_batch_is_found_within_memory(small_clip, monkeypatch):
    """What a GPU's first trial does, with a memory of a hundred pictures."""
    model = load_model(f"local-dir:{small_clip}", device="cpu", precision="fp32")

    def small_memory(image_NHWC):
        if len(image_NHWC) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(len(image_NHWC), model.dim)

    monkeypatch.setattr(model, "_forward_images", small_memory)
    monkeypatch.setattr(model, "device", torch.device("mps"))
    assert choose_batch(model) == 64


@pytest.mark.slow  # inductor takes a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_compiled_vectors_are_those_of_the_plain_model(embedded, tmp_path, settings):
    folder = write_shards(tmp_path, {f"{n:05d}": shard_of(n, n * 3 + 1) for n in range(3)})
    embed(folder.url, EmbedConfig(**settings, batch_size=3, compile=True), runner=CPU)
    cosines = (unit_rows(vectors(folder)) * unit_rows(vectors(embedded))).sum(axis=1)
    assert cosines.min() > 0.9999
    with pytest.raises(StaleOutput, match="Keep it: add --compile"):
        embed(folder.url, EmbedConfig(**settings, batch_size=3), runner=CPU)


def test_without_a_compiler_compile_says_so(tmp_path, settings, monkeypatch):
    def no_compiler(work):
        def run(*_):
            raise RuntimeError("Failed to find C compiler.")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    folder = write_shards(tmp_path, {"00000": shard_of(0, 1)})
    with pytest.raises(ConfigError, match=r"install a C\+\+ compiler, or go on without --compile"):
        embed(folder.url, EmbedConfig(**settings, compile=True), runner=CPU)


def test_finishing_beside_the_next_shard_gives_the_same_bytes(embedded, settings, tmp_path):
    """As on a GPU: the captions' rows come home, and files are written, in another thread."""
    folder = write_shards(tmp_path, {f"{n:05d}": shard_of(n, n * 3 + 1) for n in range(3)})
    whole = EmbedWorker.__init__

    def beside(self, *arguments):
        whole(self, *arguments)
        self.finishes_beside = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbedWorker, "__init__", beside)
        embed(folder.url, EmbedConfig(**settings, batch_size=3), runner=CPU)
    for kind in ("img_emb", "text_emb", "metadata"):
        for name in embedded.names(f"embeddings/small/{kind}"):
            path = f"embeddings/small/{kind}/{name}"
            assert folder.read_bytes(path) == embedded.read_bytes(path)


def test_fewer_shards_than_workers_and_pictures_than_decoders(embedded, tmp_path, settings):
    """clip-retrieval's workers without a shard raise, and its command never ends."""
    folder = write_shards(tmp_path, {"00000": shard_of(0, 1)})
    config = EmbedConfig(**settings, batch_size=3, decoders=4)
    report = embed(folder.url, config, runner=Runner(device="cpu", workers=8))
    assert report.counts.ok == 1
    np.testing.assert_array_equal(vectors(folder), vectors(embedded)[:1])


def test_shards_are_let_go_however_many_there_are(tmp_path, settings, monkeypatch):
    """Memory does not grow with the number of shards: few are in flight, none is kept."""
    folder = write_shards(tmp_path, {f"{n:05d}": shard_of(n, 1) for n in range(30)})
    alive: list[weakref.ref[object]] = []
    most = 0
    whole = worker.open_shard

    def watched(*arguments):
        nonlocal most
        source = whole(*arguments)
        alive.append(weakref.ref(source))
        most = max(most, sum(ref() is not None for ref in alive))
        return source

    monkeypatch.setattr(worker, "open_shard", watched)
    embed(folder.url, EmbedConfig(**settings, batch_size=1), runner=CPU)
    assert len(alive) == 30
    assert most <= worker.SLOTS + 4
