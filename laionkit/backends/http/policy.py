"""What the client asks before it connects and before it reads: injected, since rules are not ours.

The stage builds a policy out of ops/urls.py and ops/consent.py; this room only obeys it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from laionkit.core.schemas import Reason


@dataclass(frozen=True)
class Denied:
    """A refusal: the reason, what was seen, and the evidence to keep (JSON) where there is any."""

    reason: Reason
    detail: str
    evidence: str | None = None


class RobotsRules(Protocol):
    """The rules of one site's robots.txt that hold for us; `len` counts them."""

    @property
    def delay_s(self) -> float:
        """Seconds that the site wants between two requests."""

    def __len__(self) -> int: ...

    def forbids(self, path: str) -> str | None:
        """The rule by which a path with its query may not be fetched; None where it may."""


@dataclass(frozen=True)
class Policy:
    """Decisions about a link, each a pure function.

    `admit` turns a URL into the one to request, or denies it; `is_public` judges an address;
    `judge` reads an answer's headers; `robots` maps (status, text) of a robots.txt to its rules,
    None where robots.txt is not asked for.
    """

    admit: Callable[[str], str | Denied]
    is_public: Callable[[str], bool]
    judge: Callable[[Iterable[tuple[str, str]]], Denied | None]
    robots: Callable[[int, str], RobotsRules] | None = None
