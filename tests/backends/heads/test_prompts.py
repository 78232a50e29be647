"""Prompt heads and labels: CLIP's published probabilities, from stored vectors."""

import numpy as np
import pytest

from laionkit.backends.heads.head import Rows
from laionkit.backends.heads.prompts import open_labels, open_prompt
from laionkit.backends.heads.scorers import open_scorers
from laionkit.core.errors import ConfigError, InputError
from laionkit.ops.vectors import unit_rows

TEXTS = ["a diagram", "a dog", "a cat"]


class Stored:
    """A text encoder that knows three texts: OpenAI's vectors of its own README example."""

    logit_scale = 100.0

    def __init__(self, vectors):
        self.vectors = dict(zip(TEXTS, unit_rows(vectors), strict=True))

    def encode_texts(self, texts):
        return np.stack([self.vectors[text] for text in texts])


@pytest.fixture
def clip_png(real_data):
    folder = real_data / "clip/npclip-vitb32"
    image = np.load(folder / "image_features.npy").reshape(1, -1)
    rows = Rows(unit_rows(image), None, np.array([True]))
    return rows, Stored(np.load(folder / "text_features.npy").reshape(3, -1))


def test_labels_give_openais_published_probabilities(clip_png):
    rows, stored = clip_png
    label, probability = open_labels("/x/kinds.txt", "\n".join(TEXTS) + "\n\n", lambda: stored)
    assert (label.column, probability.column) == ("kinds", "kinds_probability")
    assert label.score(rows).tolist() == ["a diagram"]
    assert probability.score(rows)[0] == pytest.approx(0.99279, abs=2e-4)


def test_a_prompt_head_is_the_two_way_softmax(clip_png):
    rows, stored = clip_png
    head = open_prompt('prompt:"a diagram" vs "a dog"', "b", lambda: stored)
    expected = 0.99279 / (0.99279 + 0.00421)
    assert head.score(rows.image_ND)[0] == pytest.approx(expected, abs=2e-4)
    other = open_prompt('dogs=prompt:"a dog" vs "a diagram"', "b", lambda: stored)
    assert other.name == "dogs"
    assert other.score(rows.image_ND)[0] == pytest.approx(1 - expected, abs=2e-4)


def test_scorers_take_prompts_and_labels_together(clip_png):
    _, stored = clip_png
    scorers = open_scorers(
        ['prompt:"a dog" vs "a cat"', "clip_similarity"],
        "b",
        has_text=True,
        encoder=lambda: stored,
        labels=("labels.txt", "a dog\na cat"),
    )
    columns = [scorer.column for scorer in scorers]
    assert columns == ["prompt_a_dog", "clip_similarity", "labels", "labels_probability"]


@pytest.mark.parametrize("text", ['prompt:"a dog"', "prompt:a vs b", 'prompt:"" vs "x"'])
def test_a_malformed_prompt_shows_the_form(text, clip_png):
    with pytest.raises(ConfigError, match='write prompt:"a watermarked photo" vs'):
        open_prompt(text, "b", lambda: clip_png[1])


def test_one_label_is_no_choice(clip_png):
    with pytest.raises(InputError, match="has 1 labels: 2 to"):
        open_labels("l.txt", "a dog\na dog\n", lambda: clip_png[1])
