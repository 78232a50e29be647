"""The presets: every one, the columns each chooses, and what it says where none is there."""

import pytest

from laionkit.core.errors import ConfigError
from laionkit.ops.predicates import parse_where
from laionkit.ops.presets import PRESETS, choose_preset

PUBLISHED = [
    "caption",
    "language",
    "similarity",
    "punsafe",
    "pwatermark",
    "width_published",
    "height_published",
    "aesthetic_v1_published",
    "aesthetic_v2_published",
]
COMPUTED = [
    "original_width",
    "original_height",
    "clip_similarity",
    "aesthetic_v1",
    "aesthetic_v2",
    "nsfw_l14",
]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("columns", [PUBLISHED, PUBLISHED + COMPUTED])
def test_every_preset_is_made_of_filters_that_parse(name, columns):
    preset = choose_preset(name, columns)
    assert preset.steps
    for step in preset.steps:
        if step.top is None:
            assert set(parse_where(step.condition, columns).columns) <= set(preset.used)
        else:
            assert step.column in preset.used


def conditions(name: str, columns: list[str], **settings: str) -> list[str]:
    return [step.condition for step in choose_preset(name, columns, **settings).steps]


def test_the_rules_are_those_that_were_published():
    assert conditions("sd-v1", PUBLISHED) == [
        "aesthetic_v2_published > 5",
        "width_published >= 512",
        "height_published >= 512",
        "pwatermark < 0.5",
    ]
    assert conditions("sd-v2", PUBLISHED + COMPUTED) == [
        "aesthetic_v2 >= 4.5",
        "nsfw_l14 < 0.1",
        "original_width >= 512",
        "original_height >= 512",
    ]
    assert conditions("laion-art", PUBLISHED) == [
        "aesthetic_v1_published > 8",
        "pwatermark < 0.8",
        "punsafe < 0.5",
    ]
    assert conditions("relaion-safe", PUBLISHED) == ["punsafe <= 0.45"]
    assert conditions("laion-aesthetics-v2-6.25plus", COMPUTED) == ["aesthetic_v2 >= 6.25"]
    assert choose_preset("laion-high-resolution", PUBLISHED).side_px == 1024


def test_the_best_share_is_by_the_computed_similarity_where_there_is_one():
    (step,) = choose_preset("clip-top-30", PUBLISHED + COMPUTED).steps
    assert (step.column, step.top) == ("clip_similarity", 0.3)
    assert choose_preset("clip-top-30", PUBLISHED).used == ("similarity",)


def test_a_preset_without_its_column_says_which_it_accepts_and_how_to_get_one():
    with pytest.raises(ConfigError, match="needs a column aesthetic_v2 or aesthetic_v2_published"):
        choose_preset("sd-v1", ["punsafe"])
    with pytest.raises(ConfigError, match="--heads nsfw-l14"):
        choose_preset("relaion-safe", ["aesthetic_v2"])


def test_datacomp_basic_wants_a_language_unless_told_otherwise():
    without = [name for name in PUBLISHED if name != "language"]
    with pytest.raises(ConfigError, match="--language any"):
        choose_preset("datacomp-basic", without)
    assert len(conditions("datacomp-basic", without, language="any")) == 4
    assert conditions("datacomp-basic", PUBLISHED, language="DE")[0] == "LOWER(language) = 'de'"


def test_an_unknown_preset_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"did you mean sd-v1\?"):
        choose_preset("sd-v11", PUBLISHED)


def test_a_computed_watermark_is_preferred_to_the_published_one():
    columns = {"aesthetic_v2", "original_width", "original_height"}
    both = choose_preset("sd-v1", {*columns, "watermark", "pwatermark"})
    assert "watermark" in both.used
    assert "pwatermark" not in both.used
    with pytest.raises(
        ConfigError, match=r"needs a column watermark or pwatermark.*--heads watermark"
    ):
        choose_preset("sd-v1", columns)
