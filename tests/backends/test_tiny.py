"""The built-in `tiny` CLIP: what its card promises is measured again, on fresh pictures."""

import hashlib
import json

import cv2
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from laionkit.backends.tiny import FOLDER, as_input, load_tiny
from laionkit.backends.tiny.evaluate import Measured, evaluate
from laionkit.backends.tiny.tokenizer import TinyTokenizer
from laionkit.ops import pictures

FRESH_SEED = 9_781_137


@pytest.fixture(scope="module")
def tiny() -> tuple[open_clip.CLIP, dict, TinyTokenizer]:
    return load_tiny()


@pytest.fixture(scope="module")
def tokenizer() -> TinyTokenizer:
    return TinyTokenizer.load(FOLDER / "tokenizer.json")


def measure(tiny: tuple, scenes: list[pictures.Scene], drawn: list[np.ndarray]) -> Measured:
    return evaluate(
        *tiny,
        np.stack(drawn),
        captions=[pictures.full_caption(scene) for scene in scenes],
        colours=[scene.things[0].colour for scene in scenes],
        shapes=[scene.things[0].shape for scene in scenes],
    )


def test_unseen_pairs_are_recognised_and_found(tiny: tuple) -> None:
    scenes = pictures.unseen_singles(np.random.default_rng(FRESH_SEED), 2000)
    measured = measure(tiny, scenes, [pictures.draw(scene, 64) for scene in scenes])
    assert measured.colour_accuracy >= 0.95
    assert measured.shape_accuracy >= 0.95
    assert measured.recall_at_10 >= 0.80


def test_large_jpegs_are_recognised_through_open_clips_own_transform(tiny: tuple) -> None:
    model, preprocess_cfg, tokenizer = tiny
    transform = image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False)
    rng = np.random.default_rng(FRESH_SEED + 1)
    scenes = pictures.unseen_singles(rng, 300)
    pixels = []
    for scene in scenes:
        drawn = pictures.draw(scene, int(rng.integers(200, 700)))
        jpeg = cv2.imencode(".jpg", drawn[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        pixels.append(transform(Image.fromarray(cv2.imdecode(jpeg, 1)[:, :, ::-1])))
    shapes = [scene.things[0].shape for scene in scenes]
    prompts = tokenizer([f"a picture of a {shape}" for shape in pictures.SHAPES])
    with torch.inference_mode():
        image_ND = model.encode_image(torch.stack(pixels), normalize=True)
        text_CD = model.encode_text(prompts, normalize=True)
    named = [pictures.SHAPES[i] for i in (image_ND @ text_CD.T).argmax(dim=1).tolist()]
    assert np.mean([a == b for a, b in zip(named, shapes, strict=True)]) >= 0.90


def test_the_card_states_the_numbers_that_the_script_measured() -> None:
    measured = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for name in ("colour_accuracy", "shape_accuracy", "recall_at_10"):
        assert f"{100 * measured[name]:.2f} %" in card
    assert measured["sha256"] in card


def test_the_weights_are_the_measured_ones_and_small() -> None:
    weights = (FOLDER / "model.safetensors").read_bytes()
    measured = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(weights).hexdigest() == measured["sha256"]
    assert len(weights) <= 16 * 2**20


def test_it_is_an_open_clip_model_with_one_vector_per_input(tiny: tuple) -> None:
    model, preprocess_cfg, tokenizer = tiny
    assert isinstance(model, open_clip.CLIP)
    assert not model.training
    assert open_clip.get_model_preprocess_cfg(model)["size"] == 64
    picture_NHWC = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        image_ND = model.encode_image(as_input(picture_NHWC, preprocess_cfg))
        text_ND = model.encode_text(tokenizer(["a red star", ""]))
    assert image_ND.shape == (3, 128)
    assert text_ND.shape == (2, 128)
    assert image_ND.dtype == text_ND.dtype == torch.float32


def test_two_loads_embed_alike(tiny: tuple) -> None:
    again = load_tiny()[0]
    token_NL = tiny[2](["two striped blue rings on sand"])
    with torch.inference_mode():
        assert torch.equal(tiny[0].encode_text(token_NL), again.encode_text(token_NL))


@given(text=st.text(max_size=300))
def test_any_text_becomes_one_valid_row(text: str) -> None:
    tokenizer = TinyTokenizer(["red", "star"], {})
    row = tokenizer([text])[0]
    assert row.shape == (32,)
    assert row.dtype == torch.int64
    assert row[0] == tokenizer.sot_token_id
    end = int(row.argmax())
    assert row[end] == tokenizer.eot_token_id
    assert not row[end + 1 :].any()
    assert 0 <= int(row.min()) <= int(row.max()) < tokenizer.vocab_size


@pytest.mark.parametrize(
    "text", ["", "星", "\ud800", "x" * 10_000, "red " * 500, "🙂", "\x00\n\t", "Ä ﬁ"]
)
def test_odd_texts_are_embedded_to_numbers(tiny: tuple, text: str) -> None:
    model, _, tokenizer = tiny
    with torch.inference_mode():
        assert torch.isfinite(model.encode_text(tokenizer([text]))).all()


def test_words_are_one_token_and_unknown_words_their_bytes(tokenizer: TinyTokenizer) -> None:
    assert len(tokenizer.encode("A red STAR, on sand")) == 6
    assert tokenizer.encode("zq") == [1 + ord("z"), 1 + ord("q")]
    assert tokenizer.encode("grey") == tokenizer.encode("gray")


def test_one_text_no_text_and_another_length(tokenizer: TinyTokenizer) -> None:
    assert tokenizer("a red star").shape == (1, 32)
    assert tokenizer([]).shape == (0, 32)
    short = tokenizer(["a large red star"], context_length=4)
    assert short.shape == (1, 4)
    assert short[0, -1] == tokenizer.eot_token_id


def test_every_word_of_a_caption_is_known(tokenizer: TinyTokenizer) -> None:
    rng = np.random.default_rng(FRESH_SEED)
    for _ in range(500):
        caption = pictures.caption(pictures.random_scene(rng, unseen=None), rng)
        ids = tokenizer.encode(caption)
        assert min(ids) > 256
        assert len(ids) <= tokenizer.context_length - 2


def test_too_many_words_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        TinyTokenizer([str(i) for i in range(300)], {})
