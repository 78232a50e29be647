"""A loaded model: the vectors open_clip's own path gives, and files that are refused."""

import json
import pickle
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from laionkit.backends.clip import load_model
from laionkit.backends.clip.device import Precision
from laionkit.backends.clip.loading import load
from laionkit.backends.clip.model import ClipModel
from laionkit.backends.clip.packed import PackedAttention
from laionkit.core.errors import ConfigError, InputError
from tests.small_clip import write_small_clip

CAPTIONS = ["", "a cat", "two dogs on a red sofa", "no " * 100, "Ünïcode — 猫", "x"]


@pytest.fixture(scope="module")
def model(small_clip):
    return load_model(f"local-dir:{small_clip}", device="cpu", precision="fp32")


def test_captions_shortened_to_the_batch_give_what_open_clip_gives(model, small_clip):
    theirs = open_clip.create_model(f"local-dir:{small_clip}").eval()
    tokens_NT = open_clip.get_tokenizer(f"local-dir:{small_clip}")(CAPTIONS)
    with torch.inference_mode():
        whole = theirs.encode_text(tokens_NT, normalize=True).numpy()
    for batch in (1, 2, 64):
        np.testing.assert_allclose(model.encode_texts(CAPTIONS, batch), whole, atol=1e-5)


def test_photographs_give_what_open_clip_gives(model, small_clip, real_data):
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{small_clip}")
    files = sorted((real_data / "clip/clip-retrieval-vitb32/images").glob("*.jpg"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    with torch.inference_mode():
        batch = torch.stack([transform(picture) for picture in pictures])
        expected = theirs.eval().encode_image(batch, normalize=True).numpy()
    ours = model.encode_images([np.asarray(picture) for picture in pictures])
    assert (ours * expected).sum(axis=1).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_a_long_run_packs_weights_and_gives_what_open_clip_gives(small_clip):
    theirs = open_clip.create_model(f"local-dir:{small_clip}").eval()
    model = load_model(f"local-dir:{small_clip}", device="cpu", precision="fp32")
    pictures = np.random.default_rng(0).integers(0, 256, (37, 64, 64, 3), dtype=np.uint8)
    tokens_NT = open_clip.get_tokenizer(f"local-dir:{small_clip}")(CAPTIONS)
    before = model.encode_images(pictures)
    with model.busy(), torch.inference_mode():
        blocks = [m for m in model.module.modules() if isinstance(m, PackedAttention)]
        assert len(blocks) == 4 or not hasattr(torch.ops.mkldnn, "_linear_pointwise")
        np.testing.assert_allclose(model.encode_images(pictures), before, atol=1e-5)
        whole = theirs.encode_text(tokens_NT, normalize=True).numpy()
        np.testing.assert_allclose(model.encode_texts(CAPTIONS), whole, atol=1e-5)
        assert (model.encode_images(pictures) == model.encode_images(pictures)).all()


@pytest.mark.slow  # inductor takes half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_no_size_of_batch_is_compiled_for_midway(model, small_clip):
    pictures = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    loaded = load(f"local-dir:{small_clip}", None)
    fused = ClipModel(loaded, torch.device("cpu"), Precision.FP32, compiled=True)
    expected = model.encode_images(pictures)
    with fused.busy(8):
        compiled = dict(torch._dynamo.utils.counters["stats"])
        for count in (9, 8, 5, 3, 2, 1):
            rows = fused.encode_images(pictures[:count], 8)
            np.testing.assert_allclose(rows, expected[:count], atol=1e-5)
        assert dict(torch._dynamo.utils.counters["stats"]) == compiled


def test_nothing_in_gives_no_rows(model):
    assert model.encode_texts([]).shape == model.encode_images([]).shape == (0, model.dim)


def test_facts_name_the_weights_and_the_preprocessing(model, small_clip):
    facts = model.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["dim"] == 32
    assert facts["backbone"] == f"sha256:{facts['weights_sha256']}"
    assert facts["preprocess"]["std"] == [0.25, 0.25, 0.25]


def test_a_declared_backbone_is_recorded_as_declared(tmp_path):
    folder = write_small_clip(tmp_path, quick_gelu=True)
    model = load_model(f"local-dir:{folder}", backbone_id="openai/ViT-L-14", device="cpu")
    assert (model.facts()["backbone"], model.facts()["provenance"]) == (
        "openai/ViT-L-14",
        "declared",
    )


def test_bf16_stays_near_fp32_and_is_normalised_in_fp32(model, small_clip):
    half = load_model(f"local-dir:{small_clip}", device="cpu", precision="bf16")
    rows = half.encode_texts(CAPTIONS)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert (rows * model.encode_texts(CAPTIONS)).sum(axis=1).min() > 0.999


class Burglar:
    """A pickle that would run code."""

    def __reduce__(self):
        return (print, ("your house is mine",))


@pytest.mark.parametrize("kind", ["pickle", "pointer", "other", "empty", "old pickle"])
def test_a_file_that_is_no_weights_is_refused_in_one_line(kind, small_clip, tmp_path, capsys):
    weights = tmp_path / "open_clip_pytorch_model.bin"
    if kind == "pickle":
        torch.save({"state_dict": Burglar()}, weights)
    elif kind == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif kind == "other":
        torch.save({"a.weight": torch.zeros(3)}, weights)
    elif kind == "old pickle":
        weights.write_bytes(pickle.dumps({}))
    else:
        weights.write_bytes(b"")
    shutil.copy(small_clip / "open_clip_config.json", tmp_path)
    with pytest.raises(InputError, match="no weights file for this architecture") as caught:
        load_model(f"local-dir:{tmp_path}", device="cpu")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no open_clip_config\.json"):
        load_model(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "gpu"}, "device='gpu': one of auto, cuda"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"device": "cpu", "precision": "fp16"}, "for GPUs"),
    ],
)
def test_a_wrong_device_or_precision_is_refused(small_clip, settings, words):
    with pytest.raises(ConfigError, match=words):
        load_model(f"local-dir:{small_clip}", **settings)


def test_token_ids_are_those_of_clip(real_data):
    golden = json.loads((real_data / "clip/tokenizer-golden/clip_token_ids.json").read_text())
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    agree = sum(
        [tokenizer.sot_token_id, *tokenizer.encode(g["text"]), tokenizer.eot_token_id] == g["ids"]
        for g in golden
    )
    assert agree >= 23


def test_the_built_in_tiny_model_knows_a_colour_when_it_sees_one():
    tiny = load_model("tiny", device="cpu", precision="fp32")
    assert tiny.backbone == "laionkit/tiny"
    red, blue = (np.full((80, 60, 3), rgb, np.uint8) for rgb in ((220, 30, 30), (30, 30, 220)))
    cosines = tiny.encode_images([red, blue]) @ tiny.encode_texts(["a red thing", "a blue thing"]).T
    assert (cosines.argmax(axis=1) == [0, 1]).all()
