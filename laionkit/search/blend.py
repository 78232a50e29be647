"""Blend several wishes into one query: words for and against, keys, a taste for a score.

All of them are vectors of the model's space, and a weighted sum of them is again one: what it
ranks by is exactly the weighted sum of the cosines. An affine head is a vector too, so a score is
blended in exactly, without reading a single score.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from laionkit.core.embeddings import score_columns
from laionkit.core.errors import ConfigError, InputError, did_you_mean
from laionkit.core.files import Folder

_LEAST = 1e-4  # below this length a blend has no direction left
_NAMED = ("image", "key", "vector")

Weighted = tuple[float, NDArray[np.float32]]
Kind = Literal["text", "image", "key", "vector"]
Wishes = TypeVar("Wishes")


@dataclass(frozen=True)
class Wish:
    """One part of a query: its weight, what kind of thing it is, and the thing."""

    weight: float
    kind: Kind
    value: str


def parse_wish(wish: str) -> Wish:
    """Read ``1.5:red fox``; without a weight it is 1. Raises ConfigError where it says nothing.

    ``image=FILE or URL``, ``key=KEY`` and ``vector=FILE.npy`` stand for what they name, anything
    else for its words.

    >>> parse_wish("0.5:cartoon"), parse_wish("key=000010005").kind
    (Wish(weight=0.5, kind='text', value='cartoon'), 'key')
    """
    weight, value = _weight_of(wish)
    if weight < 0 or not math.isfinite(weight):
        raise ConfigError(f"{wish!r}: a weight is 0 or more; --minus pushes away")
    name, equals, named = value.partition("=")
    kind: Kind = cast(Kind, name) if equals and name in _NAMED else "text"
    value = named if kind != "text" else value
    if not value.strip():
        raise ConfigError(
            f"{wish!r} says nothing to look for: write WEIGHT:TEXT, as in 0.5:cartoon"
        )
    return Wish(weight, kind, value)


def _weight_of(wish: str) -> tuple[float, str]:
    """The number before the first colon, and the rest; 1 and all of it where there is none."""
    number, colon, rest = wish.partition(":")
    try:
        return (float(number), rest.strip()) if colon else (1.0, wish)
    except ValueError:
        return 1.0, wish


def listed(wishes: Wishes | str) -> Wishes | tuple[str]:
    """One wish that stands alone, as a list of it."""
    return (wishes,) if isinstance(wishes, str) else wishes


def keys_of(like: str | None, plus: Sequence[str], minus: Sequence[str]) -> list[str]:
    """The keys that somebody asks with."""
    wishes = map(parse_wish, (*listed(plus), *listed(minus)))
    asked = [wish.value for wish in wishes if wish.kind == "key"]
    return asked if like is None else [like, *asked]


def parse_boost(wish: str) -> tuple[str, float]:
    """Split ``aesthetic_v2=0.3`` into column and weight. Raises ConfigError for another form."""
    column, _, weight = wish.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not (column.strip() and math.isfinite(number)):
        raise ConfigError(f"boost {wish!r}: write COLUMN=WEIGHT, such as aesthetic_v2=0.3")
    return column.strip(), number


def blend(parts: Sequence[Weighted]) -> NDArray[np.float32]:
    """The unit vector of a weighted sum.

    Raises ConfigError where there is no part, InputError where they cancel out.
    """
    if not parts:
        raise ConfigError("say what to look for: a text, an image, a vector, like or plus")
    if len(parts) == 1 and parts[0][0] > 0:
        return parts[0][1]
    total = np.sum([np.float32(weight) * vector for weight, vector in parts], axis=0)
    length = float(np.linalg.norm(total))
    if not length >= _LEAST:
        raise InputError("the parts of this query cancel out: change their weights")
    return np.asarray(total / length, np.float32)


def head_direction(dataset: Folder, name: str, backbone: str | None) -> NDArray[np.float32]:
    """The unit vector along which a score grows: a column of the dataset's, or a head's file.

    Raises ConfigError where it is neither, no affine head, or a head for another backbone.
    """
    from laionkit.backends.heads import load_head

    is_file = name.endswith((".safetensors", ".pth"))
    head = load_head(name if is_file else _head_of(dataset, name))
    if backbone is not None and head.backbone != backbone:
        raise ConfigError(
            f"boost {name}: its head reads embeddings of {head.backbone}, not of {backbone}"
        )
    affine = head.affine()
    if affine is None:
        raise ConfigError(
            f"boost {name}: that head is not affine, so it cannot be blended into a query: "
            'filter by its score instead, as in --where "nsfw_l14 < 0.1"'
        )
    return np.asarray(affine[0] / np.linalg.norm(affine[0]), np.float32)


def _head_of(dataset: Folder, column: str) -> str:
    """The published head that made a score column."""
    from laionkit.backends.heads import PUBLISHED

    columns = score_columns(dataset)
    if column not in columns:
        raise ConfigError(
            f"boost {column}: {dataset} has no such score{did_you_mean(column, columns)}; "
            f"it has {', '.join(columns) or 'none'}"
        )
    head = str(columns[column].config.get("head"))
    if head not in PUBLISHED:
        raise ConfigError(
            f"boost {column}: that score was not made by a published head; give the head's file, "
            f"as in --boost {column}.safetensors=0.3"
        )
    return head


def boosts_of(wishes: Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Boosts as column → weight, from a mapping or from ``COLUMN=WEIGHT`` texts."""
    if isinstance(wishes, Mapping):
        return dict(parse_boost(f"{column}={weight}") for column, weight in wishes.items())
    return dict(map(parse_boost, wishes))
