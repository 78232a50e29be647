"""Scenes: what is in a picture and where, drawn from a random generator.

Lengths are fractions of the picture's shorter edge, from 0 (left, top) to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from laionkit.core.errors import InputError
from laionkit.ops.pictures._words import (
    COLOURS,
    GROUNDS,
    KINDS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Rgb,
    held_out,
    stands_out,
)


@dataclass(frozen=True)
class Thing:
    """One object: four words that a caption may use, and where exactly it is drawn."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    """Centre, fraction of the shorter edge from the left of the middle square."""
    y: float
    """Centre, fraction of the shorter edge from its top."""
    radius: float
    """Half the extent, fraction of the shorter edge."""
    angle: float
    """Clockwise turn in radians."""
    rgb: Rgb
    """The paint: the colour's own value with a little jitter."""


@dataclass(frozen=True)
class Scene:
    """A picture but for its size: things on a ground, and what a caption needs to name them."""

    kind: str
    """single: one thing at a place; group: 2 to 4 equal things; pair: two unlike things."""
    things: tuple[Thing, ...]
    ground: str
    place: str | None
    """Word of `PLACES` for a single thing; left or top (where the first one is) for a pair."""
    light: float
    """Brightness of the ground, 1 being neutral."""
    seed: int
    """Seeds the ground's grain."""


def random_scene(
    rng: np.random.Generator, *, kind: str | None = None, unseen: bool | None = False
) -> Scene:
    """Draw a scene from the generator.

    `kind` is one of `KINDS`; None picks one, single in two cases of three. `unseen` False keeps to
    the (colour, shape) pairs of training, True to the held-out ones, None takes any.
    """
    if kind is None:
        kind = pick(rng, ("single", "single", "single", "single", "group", "pair"))
    ground = pick(rng, tuple(GROUNDS))
    place: str | None = None
    things: tuple[Thing, ...]
    if kind == "single":
        place = pick(rng, tuple(PLACES))
        things = (_single(rng, ground, place, unseen),)
    elif kind == "group":
        things = _group(rng, ground, unseen)
    elif kind == "pair":
        place = pick(rng, ("left", "top"))
        things = _pair(rng, ground, place, unseen)
    else:
        raise InputError(f"kind is {kind!r}; known: {', '.join(KINDS)}")
    return Scene(kind, things, ground, place, rng.uniform(0.92, 1.06), int(rng.integers(2**31)))


def relatives(scene: Scene, rng: np.random.Generator, differ_in: str, count: int) -> list[Scene]:
    """Up to `count` scenes that are this one but for their shape or their colour.

    Everything else stays, the grain too, and all are (colour, shape) pairs of training.
    `differ_in` is shape or colour. Raises InputError for a pair of things.
    """
    if scene.kind == "pair" or differ_in not in ("shape", "colour"):
        raise InputError(f"a {scene.kind} has no relatives that differ in {differ_in!r}")
    thing = scene.things[0]
    pairs = (
        [(thing.colour, shape) for shape in SHAPES]
        if differ_in == "shape"
        else [(colour, thing.shape) for colour in COLOURS if stands_out(colour, scene.ground)]
    )
    pairs = [pair for pair in pairs if not held_out(*pair)]
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:count].tolist()]
    return [_with(scene, rng, colour, shape) for colour, shape in chosen]


def _with(scene: Scene, rng: np.random.Generator, colour: str, shape: str) -> Scene:
    rgb = _jittered(rng, colour)
    things = tuple(replace(t, colour=colour, shape=shape, rgb=rgb) for t in scene.things)
    return replace(scene, things=things)


def _single(rng: np.random.Generator, ground: str, place: str, unseen: bool | None) -> Thing:
    colour, shape = _colour_and_shape(rng, ground, unseen)
    size = pick(rng, tuple(SIZES))
    radius = SIZES[size] * rng.uniform(0.94, 1.06)
    reach = (0.47 - radius) * rng.uniform(0.85, 1.0)
    dx, dy = PLACES[place]
    x = 0.5 + reach * dx + rng.uniform(-0.03, 0.03)
    y = 0.5 + reach * dy + rng.uniform(-0.03, 0.03)
    texture = pick(rng, TEXTURES)
    return _thing(rng, (colour, shape, size, texture), (x, y, radius))


def _group(rng: np.random.Generator, ground: str, unseen: bool | None) -> tuple[Thing, ...]:
    """Two to four things alike in all but their turn, each in a quarter of its own."""
    colour, shape = _colour_and_shape(rng, ground, unseen)
    words = (colour, shape, "small", pick(rng, TEXTURES))
    quarters = rng.permutation(4)[: rng.integers(2, 5)]
    radius = rng.uniform(0.14, 0.19)
    middles = [
        (0.27 + 0.46 * (q % 2) + rng.uniform(-0.05, 0.05), 0.27 + 0.46 * (q // 2))
        for q in quarters.tolist()
    ]
    return tuple(_thing(rng, words, (x, y + rng.uniform(-0.05, 0.05), radius)) for x, y in middles)


def _pair(
    rng: np.random.Generator, ground: str, place: str, unseen: bool | None
) -> tuple[Thing, ...]:
    """Two things of different colour and shape, side by side (left) or stacked (top)."""
    first = _colour_and_shape(rng, ground, unseen)
    second = _colour_and_shape(rng, ground, unseen)
    while first[0] == second[0] or first[1] == second[1]:
        second = _colour_and_shape(rng, ground, unseen)
    things = []
    for (colour, shape), along in ((first, 0.27), (second, 0.73)):
        along, across = along + rng.uniform(-0.03, 0.03), rng.uniform(0.35, 0.65)
        x, y = (along, across) if place == "left" else (across, along)
        words = (colour, shape, "medium", pick(rng, TEXTURES))
        things.append(_thing(rng, words, (x, y, rng.uniform(0.16, 0.21))))
    return tuple(things)


def _thing(
    rng: np.random.Generator,
    words: tuple[str, str, str, str],
    where: tuple[float, float, float],
) -> Thing:
    colour, shape, size, texture = words
    angle = rng.uniform(-0.2, 0.2)
    return Thing(shape, colour, size, texture, *where, angle, _jittered(rng, colour))


def _jittered(rng: np.random.Generator, colour: str) -> Rgb:
    jitter = rng.integers(-9, 10, size=3).tolist()
    levels = [min(255, max(0, level + j)) for level, j in zip(COLOURS[colour], jitter, strict=True)]
    return (levels[0], levels[1], levels[2])


def _colour_and_shape(
    rng: np.random.Generator, ground: str, unseen: bool | None
) -> tuple[str, str]:
    colours, shapes = tuple(COLOURS), SHAPES
    while True:
        colour, shape = pick(rng, colours), pick(rng, shapes)
        if unseen is not None and held_out(colour, shape) != unseen:
            continue
        if stands_out(colour, ground):
            return colour, shape


def pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    """One of the words, each as likely as the other."""
    return words[int(rng.integers(len(words)))]
