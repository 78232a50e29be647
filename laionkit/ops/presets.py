"""The filters that people ask for by name, as LAION, Stability and DataComp published them.

A preset says which columns it accepts, computed before published; where none is there it fails.
It never reads a missing column as "all null". Sides are those the picture had where it was
found: ``original_*`` once fetched, ``*_published`` before.
"""

from collections.abc import Collection
from dataclasses import dataclass

from laionkit.core.errors import ConfigError, did_you_mean
from laionkit.ops.predicates import quote_name, quote_text

AESTHETIC_V2 = ("aesthetic_v2", "aesthetic_v2_published")
AESTHETIC_V1 = ("aesthetic_v1", "aesthetic_v1_published")
# nsfw_l14 is the head that gave LAION its punsafe; the H-14 of Re-LAION has no public head.
PUNSAFE = ("nsfw_l14", "punsafe")
# embed's image head is the very model that gave LAION its pwatermark.
PWATERMARK = ("watermark", "pwatermark")
SIMILARITY = ("clip_similarity", "similarity")
LANGUAGE = ("language",)
CAPTION = ("caption",)
WIDTH = ("original_width", "width_published")
HEIGHT = ("original_height", "height_published")

# At least three runs of characters between spaces.
_OVER_TWO_WORDS = r"'\S+\s+\S+\s+\S'"


@dataclass(frozen=True)
class Rule:
    """One step of a preset: a condition over columns, or the best share by one.

    `accepts` lists, for each ``{0}``, ``{1}`` of `condition`, the columns that will do, the
    preferred one first. With `top`, that share (0–1) with the greatest value is kept instead.
    """

    accepts: tuple[tuple[str, ...], ...]
    condition: str = ""
    top: float | None = None


@dataclass(frozen=True)
class Step:
    """A rule with its columns chosen: a condition, or the best share `top` by `column`."""

    condition: str = ""
    column: str = ""
    top: float | None = None


@dataclass(frozen=True)
class Preset:
    """A preset over the columns of one dataset.

    `used` names the columns chosen. `side_px` is the least side that it asks for, 0 for none.
    """

    name: str
    steps: tuple[Step, ...]
    used: tuple[str, ...]
    side_px: int = 0


def _sides(px: int) -> tuple[Rule, ...]:
    return (Rule((WIDTH,), f"{{0}} >= {px}"), Rule((HEIGHT,), f"{{0}} >= {px}"))


def _language(language: str) -> tuple[Rule, ...]:
    wanted = f"LOWER({{0}}) = {quote_text(language.lower())}"
    return () if language == "any" else (Rule((LANGUAGE,), wanted),)


_FIXED: dict[str, tuple[tuple[Rule, ...], int]] = {
    **{
        f"laion-aesthetics-v2-{least}plus": ((Rule((AESTHETIC_V2,), f"{{0}} >= {least}"),), 0)
        for least in ("4.5", "4.75", "5", "6", "6.25", "6.5")
    },
    "sd-v1": (
        (
            Rule((AESTHETIC_V2,), "{0} > 5"),
            *_sides(512),
            Rule((PWATERMARK,), "{0} < 0.5"),
        ),
        512,
    ),
    "sd-v2": (
        (
            Rule((AESTHETIC_V2,), "{0} >= 4.5"),
            Rule((PUNSAFE,), "{0} < 0.1"),
            *_sides(512),
        ),
        512,
    ),
    "laion-art": (
        (
            Rule((AESTHETIC_V1,), "{0} > 8"),
            Rule((PWATERMARK,), "{0} < 0.8"),
            Rule((PUNSAFE,), "{0} < 0.5"),
        ),
        0,
    ),
    "laion-high-resolution": (_sides(1024), 1024),
    "relaion-safe": ((Rule((PUNSAFE,), "{0} <= 0.45"),), 0),
    "clip-top-30": ((Rule((SIMILARITY,), top=0.3),), 0),
}
_DATACOMP = (
    Rule((CAPTION,), f"REGEXP_MATCHES({{0}}, {_OVER_TWO_WORDS})"),
    Rule((CAPTION,), "LENGTH({0}) > 5"),
    Rule((WIDTH, HEIGHT), "LEAST({0}, {1}) >= 200"),
    Rule((WIDTH, HEIGHT), "GREATEST({0}, {1}) <= 3 * LEAST({0}, {1})"),
)
PRESETS = (*_FIXED, "datacomp-basic")


def choose_preset(name: str, columns: Collection[str], language: str = "en") -> Preset:
    """The steps of preset `name` over a dataset's `columns`.

    `language` is what ``datacomp-basic`` asks for; ``any`` drops that step. Raises ConfigError
    for a name that is none, and for a rule none of whose columns is there.
    """
    if name == "datacomp-basic":
        rules, side_px = (*_language(language), *_DATACOMP), 0
    elif name in _FIXED:
        rules, side_px = _FIXED[name]
    else:
        hint = did_you_mean(name, PRESETS)
        raise ConfigError(f"no preset is called {name!r}{hint}; there are {', '.join(PRESETS)}")
    steps, used = [], []
    for rule in rules:
        chosen = [_choose(accepted, columns, name) for accepted in rule.accepts]
        used += chosen
        names = [quote_name(column) for column in chosen]
        if rule.top is None:
            steps.append(Step(condition=rule.condition.format(*names)))
        else:
            steps.append(Step(column=chosen[0], top=rule.top))
    return Preset(name, tuple(steps), tuple(dict.fromkeys(used)), side_px)


def _choose(accepted: tuple[str, ...], columns: Collection[str], preset: str) -> str:
    for column in accepted:
        if column in columns:
            return column
    hints = {
        AESTHETIC_V2: "run laionkit score --heads aesthetic-v2",
        AESTHETIC_V1: "run laionkit score --heads aesthetic-v1",
        PUNSAFE: "run laionkit score --heads nsfw-l14",
        PWATERMARK: "run laionkit embed --heads watermark, which needs LAION's weights",
        SIMILARITY: "run laionkit score --heads clip_similarity",
        LANGUAGE: "add --language any to keep every language",
        WIDTH: "run laionkit fetch first",
        HEIGHT: "run laionkit fetch first",
    }
    hint = hints.get(accepted)
    raise ConfigError(
        f"preset {preset} needs a column {' or '.join(accepted)}, and this dataset has none"
        + (f": {hint}" if hint else "")
    )
