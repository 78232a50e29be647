"""Flags beside a stage's own settings: how to run it, how to show what it did.

A command has those that change something about it, and no others: a flag that would be ignored
is refused as any unknown one is.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from laionkit.cli.progress import watcher
from laionkit.core.errors import ConfigError
from laionkit.core.runner import Runner

_group = Group("How to run (changes no result)", sort_key=9)
_flags = Parameter(name="*", group=_group)

Dataset = Annotated[
    str, Parameter(help="The dataset: a folder, or a URL such as s3://bucket/my-set.")
]
Device = Literal["auto", "cuda", "mps", "cpu"]
Json = Annotated[bool, Parameter(help="Print one JSON document on stdout.")]


@_flags
@dataclass(frozen=True)
class HowToShow:
    """What every stage's command has."""

    quiet: Annotated[bool, Parameter(alias="-q")] = False
    """No progress, only warnings."""
    json: Json = False

    def runner(self) -> Runner:
        """The Runner these flags stand for. Raises ConfigError for a part that is none."""
        how: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        del how["json"]
        if "part" in how:
            how["part"] = _part(how["part"])
        return Runner(progress=watcher(how.pop("quiet")), **how)


@_flags
@dataclass(frozen=True)
class HowToRun(HowToShow):
    """Stages that do all their work at once and keep it."""

    fresh: bool = False
    """Set aside output made with another config, then start over (with --yes)."""
    yes: Annotated[bool, Parameter(alias="-y")] = False
    """Agree to what --fresh would set aside."""


@_flags
@dataclass(frozen=True)
class HowToForget(HowToShow):
    """forget, which cannot be undone."""

    yes: Annotated[bool, Parameter(alias="-y")] = False
    """Agree to take them down for good; without it they are only counted."""


@_flags
@dataclass(frozen=True)
class HowToAsk(HowToShow):
    """What a model answers."""

    device: Device = "auto"
    """Where models run: a GPU where there is one."""


@_flags
@dataclass(frozen=True)
class HowToWork(HowToRun):
    """Stages that work shard by shard."""

    workers: int | None = None
    """Worker processes; the stage chooses where this is not given."""


@_flags
@dataclass(frozen=True)
class HowToShare(HowToWork):
    """Such stages whose shards can be done on several machines."""

    part: str = "1/1"
    """i/n: do the i-th of n parts, so that n machines share one dataset."""


@_flags
@dataclass(frozen=True)
class HowToCompute(HowToShare):
    """Such stages with a model in them."""

    device: Device = "auto"
    """Where models run: a GPU where there is one."""


def _part(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not (slash and i.isdigit() and n.isdigit()):
        raise ConfigError(f"--part {text}: give i/n, such as 1/4")
    return int(i), int(n)
