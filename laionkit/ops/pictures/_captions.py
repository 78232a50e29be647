"""Captions: a scene in words, in full and always the same, or as one of many people would."""

import numpy as np

from laionkit.core.errors import InputError
from laionkit.ops.pictures._scenes import Scene, pick, random_scene
from laionkit.ops.pictures._words import COUNTS

_ON: dict[str, str] = {"sky": "in the sky", "night": "at night"}
_AT: dict[str, str] = {
    "center": "in the center",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
_OPENINGS = ("", "", "", "a picture of ", "a photo of ", "a drawing of ", "an image of ")
_PLURALS = {"cross": "crosses"}


def full_caption(scene: Scene) -> str:
    """Name everything in the scene that captions can name, always in the same words."""
    if scene.kind == "group":
        return f"{_plural(scene)} {_on(scene.ground)}"
    names = [f"{thing.texture} {thing.colour} {thing.shape}" for thing in scene.things]
    if scene.kind == "pair":
        first, second = (_article(name) for name in names)
        return f"{first} {_relation(scene)} {second} {_on(scene.ground)}"
    size = scene.things[0].size
    return f"{_article(f'{size} {names[0]}')} {_AT[scene.place or 'center']} {_on(scene.ground)}"


def caption(scene: Scene, rng: np.random.Generator, *, full_share: float = 0.5) -> str:
    """Describe the scene as one of many people would.

    The share `full_share` of captions names everything; the others leave things out.
    """
    full = rng.random() < full_share
    opening = pick(rng, _OPENINGS)
    if scene.kind == "group":
        ground = f" {_on(scene.ground)}" if full or rng.random() < 0.5 else ""
        return f"{opening}{_plural(scene, textured=full or rng.random() < 0.5)}{ground}"
    if scene.kind == "pair":
        return opening + _pair_caption(scene, rng, full)
    return _single_caption(scene, rng, full, opening)


def unseen_singles(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes of one thing each from the held-out pairs, no two with the same full caption.

    There are about 10,000 such captions; raises InputError for more than half of them.
    """
    if count > 5000:
        raise InputError(f"count is {count}; at most 5000 distinct captions are sure to be found")
    by_caption: dict[str, Scene] = {}
    while len(by_caption) < count:
        scene = random_scene(rng, kind="single", unseen=True)
        by_caption.setdefault(full_caption(scene), scene)
    return list(by_caption.values())


def _pair_caption(scene: Scene, rng: np.random.Generator, full: bool) -> str:
    textured = full or rng.random() < 0.5
    first, second = (
        _article(f"{t.texture} {t.colour} {t.shape}" if textured else f"{t.colour} {t.shape}")
        for t in scene.things
    )
    relation = _relation(scene) if full or rng.random() < 0.5 else "and"
    ground = f" {_on(scene.ground)}" if full or rng.random() < 0.5 else ""
    return f"{first} {relation} {second}{ground}"


def _single_caption(scene: Scene, rng: np.random.Generator, full: bool, opening: str) -> str:
    thing = scene.things[0]
    size, texture, place, ground = (full or keep for keep in (rng.random(4) < 0.35).tolist())
    # A shape named without its colour keeps shape and colour from being learnt as one word.
    lot = 1.0 if full else rng.random()
    words = [thing.size] * size + [thing.texture] * texture + [thing.colour] * (lot > 0.4)
    noun = "thing" if 0.4 < lot < 0.6 else thing.shape
    at = [_AT[scene.place or "center"]] * place
    on = [_on(scene.ground)] * ground
    form = rng.integers(4)
    if form == 0:
        return ", ".join([*words, noun, *at, *on])
    tail = [*on, *at] if form == 1 else [*at, *on]
    return opening + " ".join([_article(" ".join([*words, noun])), *tail])


def _plural(scene: Scene, textured: bool = True) -> str:
    thing = scene.things[0]
    noun = _PLURALS.get(thing.shape, f"{thing.shape}s")
    texture = f"{thing.texture} " if textured else ""
    return f"{COUNTS[len(scene.things)]} {texture}{thing.colour} {noun}"


def _relation(scene: Scene) -> str:
    return "to the left of" if scene.place == "left" else "above"


def _on(ground: str) -> str:
    return _ON.get(ground, f"on {ground}")


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
