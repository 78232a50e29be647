"""Towers of other kinds than OpenAI's: what open_clip gives, and where captions may be cut."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from laionkit.backends.clip import load_model
from laionkit.backends.clip.model import reads_left_to_right
from tests.small_clip import CONFIG, PREPROCESS

CAPTIONS = ["", "a cat", "two dogs on a red sofa", "no " * 100, "Ünïcode — 猫", "a ! b !", "x"]
VISION, TEXT = CONFIG["vision_cfg"], CONFIG["text_cfg"]
ALL = {"no_causal_mask": True}

# What differs from the small CLIP, and whether a caption's feature ignores the padding behind it.
TOWERS = {
    "clip": ({}, True),
    "quickgelu": ({"quick_gelu": True}, True),
    "no mask": ({"text_cfg": {**TEXT, **ALL}}, False),
    "last token": ({"text_cfg": {**TEXT, "pool_type": "last"}}, False),
    "custom text": ({"custom_text": True}, True),
    "custom text, end by its id": (
        {"custom_text": True, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407}},
        True,
    ),
    "siglip": (
        {
            "custom_text": True,
            "init_logit_bias": -10,
            "text_cfg": {**TEXT, **ALL, "pool_type": "last", "proj_bias": True},
            "vision_cfg": {**VISION, "pool_type": "avg", "no_ln_pre": True},
        },
        False,
    ),
    "class token": ({"custom_text": True, "text_cfg": {**TEXT, "embed_cls": True}}, False),
    "coca": (
        {
            "custom_text": True,
            "vision_cfg": {**VISION, "attentional_pool": True, "output_tokens": True},
            "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": {**TEXT, "context_length": 76},
        },
        False,
    ),
    "336 px, patches of 14": ({"vision_cfg": {**VISION, "image_size": 42, "patch_size": 14}}, True),
    "no square": ({"vision_cfg": {**VISION, "image_size": [64, 32]}}, True),
    "timm": (
        {
            "vision_cfg": {
                "timm_model_name": "test_vit",
                "timm_model_pretrained": False,
                "timm_pool": "token",
                "timm_proj": "linear",
                "image_size": 160,
            }
        },
        True,
    ),
}


@pytest.fixture(params=TOWERS.values(), ids=TOWERS)
def tower(request, tmp_path):
    """A model of that kind with seeded weights as open_clip loads it, its name, may it be cut."""
    changes, is_causal = request.param
    config = {"model_cfg": {**CONFIG, **changes}, "preprocess_cfg": PREPROCESS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    spec = f"local-dir:{tmp_path}"
    torch.manual_seed(0)
    theirs = open_clip.create_model(spec, load_weights=False).eval()
    with torch.no_grad():  # the initial positions are too alike for captions to differ
        for name, values in theirs.named_parameters():
            if name.endswith(("positional_embedding", "token_embedding.weight")):
                values.normal_(std=0.3)
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    return theirs, spec, is_causal


def test_every_kind_gives_what_open_clip_gives(tower):
    theirs, spec, is_causal = tower
    model = load_model(spec, device="cpu", precision="fp32")
    assert reads_left_to_right(model.module) is is_causal
    tokens_NT = open_clip.get_tokenizer(spec)(CAPTIONS)
    height, width = model.preprocess.height_px, model.preprocess.width_px
    shape = (5, height, width, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        text_ND = theirs.encode_text(tokens_NT, normalize=True).numpy()
        image_ND = theirs.encode_image((pixels - 0.5) / 0.25, normalize=True).numpy()
    assert len(np.unique(text_ND.round(3), axis=0)) == len(CAPTIONS)
    for batch in (1, 3, 64):
        np.testing.assert_allclose(model.encode_texts(CAPTIONS, batch), text_ND, atol=1e-5)
    np.testing.assert_allclose(model.encode_images(pictures), image_ND, atol=1e-5)
    with model.busy():
        np.testing.assert_allclose(model.encode_texts(CAPTIONS), text_ND, atol=1e-5)
        np.testing.assert_allclose(model.encode_images(pictures), image_ND, atol=1e-5)


def test_the_last_block_is_computed_for_the_token_that_is_read_alone(small_clip):
    model = load_model(f"local-dir:{small_clip}", device="cpu", precision="fp32")
    seen: dict[str, list[int]] = {"image": [], "text": []}
    for name, last in (
        ("image", model.module.visual.transformer.resblocks[-1].block),
        ("text", model.module.transformer.resblocks[-1]),
    ):
        last.mlp.register_forward_pre_hook(
            lambda _, given, name=name: seen[name].append(given[0].shape[1])
        )
    edges = model.preprocess.height_px, model.preprocess.width_px
    model.encode_images(np.zeros((3, *edges, 3), np.uint8))
    model.encode_texts(["a red circle", "two blue squares beside a green star"])
    assert seen == {"image": [1], "text": [1]}
