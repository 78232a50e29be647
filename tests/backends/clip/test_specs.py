"""Model names: what is understood, what is refused and with which words."""

import json

import pytest

from laionkit.backends.clip import specs
from laionkit.core.errors import ConfigError, InputError


def test_a_name_and_tag_know_whose_embedding_they_make():
    spec = specs.parse("ViT-L-14-quickgelu/openai")
    assert specs.identify(spec, "0" * 64, None) == ("openai/ViT-L-14", "computed")
    plain = specs.parse("ViT-L-14/laion2b_s32b_b82k")
    assert specs.identify(plain, "0" * 64, None)[0] == "laion2b_s32b_b82k/ViT-L-14"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("ViT-L-14/openai", "ViT-L-14-quickgelu/openai"),
        ("ViT-B-32/openai", "ViT-B-32-quickgelu/openai"),
        ("ViT-B-32/laion400m_e32", "ViT-B-32-quickgelu/laion400m_e32"),
    ],
)
def test_the_wrong_activation_is_an_error_that_names_the_right_model(wrong, right):
    with pytest.raises(ConfigError, match=f"QuickGELU.*use {right}$"):
        specs.parse(wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ViT-L-41/openai", r"no architecture 'ViT-L-41' \(did you mean"),
        ("ViT-L-14-quickgelu/openia", r"no weights 'openia' \(did you mean openai"),
        ("ViT-B-32", r"no weights: give NAME/TAG with TAG one of openai \(of ViT-B-32-quickgelu\)"),
        ("ViT-B-32/", "names no weights"),
        ("tniy", "or tiny$"),
    ],
)
def test_an_unknown_model_gets_a_suggestion(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        specs.parse(text)
    assert "\n" not in str(caught.value)


def test_known_weights_are_known_by_their_sha256_and_unknown_ones_by_declaration(tmp_path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"")
    l14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
    quick = specs.parse(f"ViT-L-14-quickgelu/{weights}")
    assert specs.identify(quick, l14, None) == ("openai/ViT-L-14", "computed")
    assert specs.identify(quick, "ab" * 32, "openai/ViT-L-14") == ("openai/ViT-L-14", "declared")
    assert specs.identify(quick, "ab" * 32, None) == (f"sha256:{'ab' * 32}", "computed")
    with pytest.raises(ConfigError, match="known to be openai/ViT-L-14"):
        specs.identify(quick, l14, "laion/other")
    plain = specs.parse(f"ViT-L-14/{weights}")
    with pytest.raises(ConfigError, match=f"use ViT-L-14-quickgelu/{weights}"):
        specs.identify(plain, l14, None)


def test_declared_weights_must_meet_their_activation(tmp_path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"")
    plain, quick = (specs.parse(f"ViT-B-32{kind}/{weights}") for kind in ("", "-quickgelu"))
    with pytest.raises(ConfigError, match=f"QuickGELU.*use ViT-B-32-quickgelu/{weights}"):
        specs.identify(plain, "ab" * 32, "openai/ViT-B-32")
    with pytest.raises(ConfigError, match=f"plain GELU.*use ViT-B-32/{weights}"):
        specs.identify(quick, "ab" * 32, "laion2b_s34b_b79k/ViT-B-32")
    assert specs.identify(plain, "ab" * 32, "me/mine") == ("me/mine", "declared")


@pytest.mark.parametrize("quick", [True, False])
def test_a_folders_config_must_build_what_its_weights_want(quick, tmp_path):
    config = {"model_cfg": {"embed_dim": 32, "quick_gelu": quick}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    spec = specs.parse(f"local-dir:{tmp_path}")
    right, wrong = ("openai/ViT-L-14", "laion2b_s32b_b82k/ViT-L-14")[:: 1 if quick else -1]
    assert specs.identify(spec, "ab" * 32, right) == (right, "declared")
    with pytest.raises(ConfigError, match=f"say quick_gelu: {str(not quick).lower()} in model_cfg"):
        specs.identify(spec, "ab" * 32, wrong)
    l14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
    if quick:
        assert specs.identify(spec, l14, None) == ("openai/ViT-L-14", "computed")
    else:
        with pytest.raises(ConfigError, match="trained with QuickGELU, which it is not built with"):
            specs.identify(spec, l14, None)


def test_a_hub_repository_of_published_weights_is_the_same_backbone():
    spec = specs.parse("hf-hub:timm/vit_large_patch14_clip_224.openai")
    assert specs.identify(spec, "0" * 64, None)[0] == "openai/ViT-L-14"


@pytest.mark.parametrize("text", ["ViT-L-14-quickgelu/openai", "hf-hub:laion/no-such-model"])
def test_no_network_is_one_line_that_says_what_to_do(text, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"could not be downloaded.*check the network") as caught:
        specs.find_weights(specs.parse(text))
    assert "\n" not in str(caught.value)
