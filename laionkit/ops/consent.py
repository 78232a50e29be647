"""Consent: what a server's headers say about use, and the robots.txt of its site.

``X-Robots-Tag`` is Google's header, with the ``noai`` family that DeviantArt began and img2dataset
honours; ``tdm-reservation`` is W3C's TDMRep; robots.txt is RFC 9309.
"""

import json
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

NO_USE = ("noai", "noimageai", "noindex", "noimageindex", "noml")
# Directives that take a value after a colon, so that the colon is no user agent's.
_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
# Of a robots.txt's user agent only this counts: ``bot/1.2`` is bot (RFC 9309, 2.2.1).
_PRODUCT = re.compile(r"[a-z_-]+|\*")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?")
# Rules read of one robots.txt; the longest published ones have a few thousand.
MAX_RULES = 10_000
_ASCII = "".join(map(chr, range(128)))
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")
_ESCAPED = re.compile("%([0-9a-fA-F]{2})")


@dataclass(frozen=True)
class OptOut:
    """The header by which use was refused, and when the server said so (its Date header)."""

    header: str
    value: str
    time: str = ""

    def as_json(self) -> str:
        """The evidence as it is stored in the row."""
        return json.dumps({"header": self.header, "value": self.value, "time": self.time})


def find_opt_out(
    headers: Iterable[tuple[str, str]],
    token: str,
    *,
    directives: frozenset[str] = frozenset(NO_USE),
    x_robots_tag: bool = True,
    tdm: bool = True,
) -> OptOut | None:
    """The first header that refuses use to the user agent `token`; None where none does."""
    time, found = "", None
    for name, value in headers:
        lower = name.lower()
        if lower == "date":
            time = value
        elif found is not None:
            continue
        elif lower == "x-robots-tag" and x_robots_tag:
            if directives & refusals(value, token):
                found = (lower, value)
        elif lower == "tdm-reservation" and tdm and value.strip() == "1":
            found = (lower, value)
    return OptOut(*found, time) if found else None


def refusals(value: str, token: str) -> set[str]:
    """The directives of one X-Robots-Tag value that hold for the user agent `token`.

    ``otherbot: noai, noindex`` holds for otherbot alone; a name lasts until the next one. A name
    has no blanks: what follows the comma of ``unavailable_after: Fri, 25 Jun 2010 15:00`` is none.
    ``none`` is short for ``noindex, nofollow``.
    """
    scope, directives = "*", set()
    for part in value.lower().split(","):
        name, colon, rest = (word.strip() for word in part.partition(":"))
        if colon and " " not in name and name not in _WITH_VALUE:
            scope, part = name, rest
        if scope in ("*", token.lower()):
            directives.add(part.strip())
    return directives | {"noindex", "nofollow"} if "none" in directives else directives


@dataclass(frozen=True)
class Robots:
    """The rules of one robots.txt that hold for us: (allow, path pattern) pairs.

    `delay_s` is its Crawl-delay, which is no part of RFC 9309 and which many sites still state.
    """

    rules: tuple[tuple[bool, str], ...] = ()
    delay_s: float = 0.0

    def __len__(self) -> int:
        """How many rules there are."""
        return len(self.rules)

    def forbids(self, path: str) -> str | None:
        """The rule by which a path (with its query) may not be fetched; None where it may.

        The longest rule that fits decides; of two as long, the one that allows.
        """
        path = in_octets(path)
        best, found = -1, None
        for allow, pattern in self.rules:
            length = len(pattern)
            if (length > best or (length == best and allow)) and matches(path, pattern):
                best, found = length, None if allow else pattern
        return None if found is None else f"Disallow: {found}"


ALL_ALLOWED = Robots()


def in_octets(path: str) -> str:
    """A path as RFC 9309, 2.2.2, compares it: only what must be is percent-encoded."""
    if not path.isascii():
        path = quote(path, safe=_ASCII)
    return _ESCAPED.sub(_unescaped, path) if "%" in path else path


def _unescaped(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()


def matches(path: str, pattern: str) -> bool:
    """Whether a path begins as a pattern says: ``*`` is anything, a last ``$`` the path's end.

    Pieces between stars are looked for from left to right, so a hostile pattern costs no more
    than its length times the path's.
    """
    ends = pattern.endswith("$")
    first, *pieces = (pattern[:-1] if ends else pattern).split("*")
    if not path.startswith(first):
        return False
    place = len(first)
    if not pieces:
        return not ends or place == len(path)
    last = pieces.pop()
    for piece in pieces:
        if (found := path.find(piece, place)) < 0:
            return False
        place = found + len(piece)
    if ends:
        return path.endswith(last) and len(path) - len(last) >= place
    return path.find(last, place) >= 0


def parse_robots(text: str, token: str) -> Robots:
    """Read a robots.txt: the groups that name `token`, else those for ``*``."""
    groups: dict[str, list[tuple[bool, str]]] = {}
    delays: dict[str, float] = {}
    agents: list[str] = []
    in_rules = False
    for line in text.lstrip("\ufeff").splitlines():
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            continue
        if name == "user-agent":
            if in_rules:
                agents, in_rules = [], False
            product = _PRODUCT.match(value.lower())
            agents.append(product[0] if product else "")
            groups.setdefault(agents[-1], [])
        elif name in ("allow", "disallow"):
            in_rules = True
            if value:
                for agent in agents:
                    groups[agent].append((name == "allow", in_octets(value)))
        elif name == "crawl-delay" and _SECONDS.fullmatch(value):
            delays |= dict.fromkeys(agents, float(value))
    chosen = token.lower() if token.lower() in groups else "*"
    return Robots(tuple(groups.get(chosen, [])[:MAX_RULES]), delays.get(chosen, 0.0))
