"""robots.txt of each site, asked for once and kept while the run lasts."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import SplitResult, urlsplit

from laionkit.backends.http.answers import Answer, Refused
from laionkit.backends.http.policy import RobotsRules

# (address of a robots.txt) -> status, text and the server's time, or why it cannot be had.
Ask = Callable[[str], Awaitable[tuple[int, str, str] | Answer]]
# A site's rules, and when the server gave them.
Site = tuple[RobotsRules, str]
# Sites and rules that are kept; a rule takes 130 bytes, and a robots.txt can hold thousands.
MAX_SITES, MAX_RULES = 100_000, 500_000
# A longer Crawl-delay is taken for so many seconds.
MAX_DELAY_S = 10.0
# A site whose robots.txt could not be had is not asked again so soon, nor for its pictures. (One
# that is busy is left to rest by who asks.)
KEEP_FAILED_S = 30.0


class RobotsCache:
    """Rules per site (scheme, host, port). Links of one site share one request."""

    def __init__(self, ask: Ask, read: Callable[[int, str], RobotsRules]) -> None:
        """`ask` fetches a robots.txt, `read` turns it into rules."""
        self._ask, self._read = ask, read
        self._rules: dict[str, Site] = {}
        self._rules_kept = 0
        self._failed: dict[str, tuple[float, Answer]] = {}
        self._under_way: dict[str, asyncio.Task[Site | Answer]] = {}

    async def forbids(self, url: str) -> tuple[str, str] | None:
        """The rule of the site's robots.txt that forbids a URL, and the server's time.

        Raises Refused where it cannot be had: without it the link must not be asked for (RFC 9309,
        2.3.1.4), and it fails for the same reason, which may heal.
        """
        parts = urlsplit(url)
        site = _site(parts)
        found: Site | Answer | None = self._rules.get(site)
        if found is None:
            found = await asyncio.shield(self._task(site))
        if isinstance(found, Answer):
            raise Refused(found)
        rules, time = found
        path = parts.path or "/"
        rule = rules.forbids(f"{path}?{parts.query}" if parts.query else path)
        return None if rule is None else (rule, time)

    def delay_s(self, url: str) -> float:
        """Seconds that the site's robots.txt wants between requests, as far as it is known."""
        known = self._rules.get(_site(urlsplit(url)))
        return min(known[0].delay_s, MAX_DELAY_S) if known else 0.0

    def _task(self, site: str) -> "asyncio.Task[Site | Answer]":
        task = self._under_way.get(site)
        if task is None:
            task = asyncio.create_task(self._look(site))
            self._under_way[site] = task
            task.add_done_callback(lambda done: self._forget(site, done))
        return task

    def _forget(self, site: str, task: "asyncio.Task[Site | Answer]") -> None:
        self._under_way.pop(site, None)
        if not task.cancelled():
            task.exception()  # seen: nobody may be left who waits for it

    async def _look(self, site: str) -> Site | Answer:
        now = asyncio.get_running_loop().time()
        until, failed = self._failed.get(site, (0.0, None))
        if failed is not None and until > now:
            return failed
        asked = await self._ask(f"{site}/robots.txt")
        if isinstance(asked, Answer):
            if len(self._failed) >= MAX_SITES:
                self._failed.clear()
            if not asked.is_busy:
                self._failed[site] = (now + KEEP_FAILED_S, asked)
            return asked
        status, text, time = asked
        self._failed.pop(site, None)
        rules = self._read(status, text)
        if len(self._rules) >= MAX_SITES or self._rules_kept + len(rules) > MAX_RULES:
            self._rules.clear()
            self._rules_kept = 0
        self._rules_kept += len(rules)
        found = self._rules[site] = (rules, time)
        return found


def _site(url: SplitResult) -> str:
    return f"{url.scheme}://{url.netloc.rpartition('@')[2].lower()}"
