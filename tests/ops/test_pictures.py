"""Drawn pictures: the same scene gives the same bytes, and captions tell scenes apart."""

import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laionkit.core.errors import InputError
from laionkit.ops import pictures

seeds = st.integers(0, 2**63 - 1)


def scene_of(seed: int, **wanted: object) -> pictures.Scene:
    return pictures.random_scene(np.random.default_rng(seed), **wanted)


@settings(max_examples=50)
@given(seed=seeds, kind=st.sampled_from(pictures.KINDS), edge_px=st.integers(8, 200))
def test_the_same_seed_draws_the_same_picture(seed: int, kind: str, edge_px: int) -> None:
    first, second = (pictures.draw(scene_of(seed, kind=kind), edge_px) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == (edge_px, edge_px, 3)
    assert np.array_equal(first, second)


@settings(max_examples=30)
@given(seed=seeds, height=st.integers(16, 300), width=st.integers(16, 300))
def test_any_height_and_width_can_be_drawn(seed: int, height: int, width: int) -> None:
    assert pictures.draw(scene_of(seed), (height, width)).shape == (height, width, 3)


@pytest.mark.parametrize("seed", range(20))
def test_a_scene_looks_alike_at_every_size(seed: int) -> None:
    scene = scene_of(seed)
    small, large = pictures.draw(scene, 64), pictures.draw(scene, 512)
    shrunk = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - shrunk).mean() < 14


def test_things_of_a_wide_picture_keep_to_its_middle_square() -> None:
    scene = scene_of(3, kind="single")
    square, wide = pictures.draw(scene, 200), pictures.draw(scene, (200, 400))
    thing = scene.things[0]
    x, y = int(thing.x * 200), int(thing.y * 200)
    assert np.abs(wide[y, 100 + x].astype(int) - square[y, x]).max() <= 12


def test_there_is_enough_to_learn() -> None:
    assert len(pictures.SHAPES) >= 12
    assert len(pictures.COLOURS) >= 10
    assert len(pictures.TEXTURES) >= 3


def test_each_colour_and_each_shape_is_both_trained_and_held_out() -> None:
    pairs = {(c, s): pictures.held_out(c, s) for c in pictures.COLOURS for s in pictures.SHAPES}
    assert sum(pairs.values()) == 24
    for colour in pictures.COLOURS:
        assert {held for (c, _), held in pairs.items() if c == colour} == {True, False}
    for shape in pictures.SHAPES:
        assert {held for (_, s), held in pairs.items() if s == shape} == {True, False}


@settings(max_examples=100)
@given(seed=seeds, unseen=st.booleans())
def test_a_scene_keeps_to_its_side_of_the_split(seed: int, unseen: bool) -> None:
    for thing in scene_of(seed, unseen=unseen).things:
        assert pictures.held_out(thing.colour, thing.shape) == unseen


@settings(max_examples=100)
@given(seed=seeds)
def test_what_is_drawn_can_be_seen(seed: int) -> None:
    scene = scene_of(seed, unseen=None)
    assert all(pictures.stands_out(thing.colour, scene.ground) for thing in scene.things)
    for thing in scene.things:
        assert thing.radius * 0.7 < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)


@pytest.mark.parametrize("differ_in", ["shape", "colour"])
def test_relatives_differ_in_one_word_only(differ_in: str) -> None:
    scene = scene_of(4, kind="group")
    family = pictures.relatives(scene, np.random.default_rng(0), differ_in, 7)
    assert len({getattr(relative.things[0], differ_in) for relative in family}) == 7
    same = "colour" if differ_in == "shape" else "shape"
    for relative in family:
        first = relative.things[0]
        assert getattr(first, same) == getattr(scene.things[0], same)
        assert (relative.ground, relative.seed) == (scene.ground, scene.seed)
        assert {t.x for t in relative.things} == {t.x for t in scene.things}
        assert pictures.stands_out(first.colour, relative.ground)
        assert not pictures.held_out(first.colour, first.shape)


def test_a_pair_has_no_relatives() -> None:
    with pytest.raises(InputError, match="pair"):
        pictures.relatives(scene_of(0, kind="pair"), np.random.default_rng(0), "shape", 2)


def test_unseen_singles_have_distinct_captions_and_held_out_pairs() -> None:
    scenes = pictures.unseen_singles(np.random.default_rng(7), 2000)
    assert len({pictures.full_caption(scene) for scene in scenes}) == 2000
    assert all(pictures.held_out(s.things[0].colour, s.things[0].shape) for s in scenes)


def test_too_many_distinct_captions_are_refused() -> None:
    with pytest.raises(InputError, match="at most 5000"):
        pictures.unseen_singles(np.random.default_rng(7), 5001)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="triple"):
        scene_of(0, kind="triple")


@settings(max_examples=100)
@given(seed=seeds, kind=st.sampled_from(pictures.KINDS))
def test_a_full_caption_names_everything(seed: int, kind: str) -> None:
    scene = scene_of(seed, kind=kind)
    caption = pictures.full_caption(scene)
    for thing in scene.things:
        assert thing.shape in caption
        assert thing.colour in caption
        assert thing.texture in caption
    assert scene.ground in caption


def test_captions_vary_but_never_name_what_is_not_there() -> None:
    scene = scene_of(11, kind="single")
    rng = np.random.default_rng(0)
    captions = {pictures.caption(scene, rng) for _ in range(200)}
    assert len(captions) > 20
    absent = set(pictures.COLOURS) | set(pictures.SHAPES)
    absent -= {scene.things[0].colour, scene.things[0].shape}
    assert not {word for caption in captions for word in caption.split()} & absent


def test_a_small_picture_takes_less_than_two_milliseconds() -> None:
    scenes = [scene_of(seed) for seed in range(200)]
    started = time.process_time()
    for scene in scenes:
        pictures.draw(scene, 64)
    assert (time.process_time() - started) / len(scenes) < 2e-3
