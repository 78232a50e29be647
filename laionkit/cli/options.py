"""Flags that every stage's command has: how to run, and how to show the result."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from laionkit.cli.progress import watcher
from laionkit.core.errors import ConfigError
from laionkit.core.runner import Runner

_group = Group("How to run (changes no result)", sort_key=9)


@Parameter(name="*", group=_group)
@dataclass(frozen=True)
class HowToRun:
    """The third kind of setting: how, never what."""

    workers: int | None = None
    """Worker processes; the stage chooses where this is not given."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where models run: a GPU where there is one."""
    part: str = "1/1"
    """i/n: do the i-th of n parts, so that n machines share one dataset."""
    fresh: bool = False
    """Set aside output made with another config, then start over (with --yes)."""
    yes: Annotated[bool, Parameter(alias="-y")] = False
    """Agree to what --fresh would set aside."""
    quiet: Annotated[bool, Parameter(alias="-q")] = False
    """No progress, only warnings."""
    json: bool = False
    """Print one JSON document on stdout."""

    def runner(self) -> Runner:
        """The Runner these flags stand for. Raises ConfigError for a part that is none."""
        i, slash, n = self.part.partition("/")
        if not (slash and i.isdigit() and n.isdigit()):
            raise ConfigError(f"--part {self.part}: give i/n, such as 1/4")
        return Runner(
            workers=self.workers,
            device=self.device,
            part=(int(i), int(n)),
            fresh=self.fresh,
            yes=self.yes,
            progress=watcher(self.quiet),
        )
