"""robots.txt of each site, asked for once and kept while the run lasts."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from laionkit.backends.http.policy import RobotsRules

# (address of a robots.txt) -> status and text; raises where the site does not answer.
Ask = Callable[[str], Awaitable[tuple[int, str]]]
MAX_SITES = 100_000
# A site whose robots.txt could not be had is not asked again so soon, nor for its pictures.
KEEP_FAILED_S = 30.0


class RobotsCache:
    """Rules per site (scheme, host, port). Links of one site share one request."""

    def __init__(self, ask: Ask, read: Callable[[int, str], RobotsRules]) -> None:
        """`ask` fetches a robots.txt, `read` turns it into rules."""
        self._ask, self._read = ask, read
        self._rules: dict[str, RobotsRules] = {}
        self._failed: dict[str, tuple[float, Exception]] = {}
        self._under_way: dict[str, asyncio.Task[RobotsRules]] = {}

    async def allows(self, url: str) -> bool:
        """Whether the site's robots.txt allows a URL.

        Raises what the request for it raised: without it the link must not be asked for (RFC
        9309, 2.3.1.4), and it fails for the same reason, which may heal.
        """
        parts = urlsplit(url)
        site = f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
        rules = self._rules.get(site)
        if rules is None:
            rules = await asyncio.shield(self._task(site))
        path = parts.path or "/"
        return rules.allows(f"{path}?{parts.query}" if parts.query else path)

    def _task(self, site: str) -> "asyncio.Task[RobotsRules]":
        task = self._under_way.get(site)
        if task is None:
            task = asyncio.create_task(self._look(site))
            self._under_way[site] = task
            task.add_done_callback(lambda done: self._forget(site, done))
        return task

    def _forget(self, site: str, task: "asyncio.Task[RobotsRules]") -> None:
        self._under_way.pop(site, None)
        if not task.cancelled():
            task.exception()  # seen: nobody may be left who waits for it

    async def _look(self, site: str) -> RobotsRules:
        now = asyncio.get_running_loop().time()
        until, error = self._failed.get(site, (0.0, None))
        if error is not None and until > now:
            raise error
        try:
            rules = self._read(*await self._ask(f"{site}/robots.txt"))
        except Exception as error:
            self._failed[site] = (now + KEEP_FAILED_S, error)
            raise
        self._failed.pop(site, None)
        if len(self._rules) >= MAX_SITES:
            self._rules.clear()
        self._rules[site] = rules
        return rules
