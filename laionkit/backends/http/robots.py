"""robots.txt of each site, asked for once and kept while the run lasts."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from laionkit.backends.http.policy import RobotsRules

# (address of a robots.txt) -> status, text and the server's time; raises where it cannot be had.
Ask = Callable[[str], Awaitable[tuple[int, str, str]]]
# A site's rules, and when the server gave them.
Site = tuple[RobotsRules, str]
MAX_SITES = 100_000
# A site whose robots.txt could not be had is not asked again so soon, nor for its pictures.
KEEP_FAILED_S = 30.0


class RobotsCache:
    """Rules per site (scheme, host, port). Links of one site share one request."""

    def __init__(self, ask: Ask, read: Callable[[int, str], RobotsRules]) -> None:
        """`ask` fetches a robots.txt, `read` turns it into rules."""
        self._ask, self._read = ask, read
        self._rules: dict[str, Site] = {}
        self._failed: dict[str, tuple[float, Exception]] = {}
        self._under_way: dict[str, asyncio.Task[Site]] = {}

    async def forbids(self, url: str) -> tuple[str, str] | None:
        """The rule of the site's robots.txt that forbids a URL, and the server's time.

        Raises what the request for it raised: without it the link must not be asked for (RFC
        9309, 2.3.1.4), and it fails for the same reason, which may heal.
        """
        parts = urlsplit(url)
        site = f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
        found = self._rules.get(site)
        if found is None:
            found = await asyncio.shield(self._task(site))
        rules, time = found
        path = parts.path or "/"
        rule = rules.forbids(f"{path}?{parts.query}" if parts.query else path)
        return None if rule is None else (rule, time)

    def _task(self, site: str) -> "asyncio.Task[Site]":
        task = self._under_way.get(site)
        if task is None:
            task = asyncio.create_task(self._look(site))
            self._under_way[site] = task
            task.add_done_callback(lambda done: self._forget(site, done))
        return task

    def _forget(self, site: str, task: "asyncio.Task[Site]") -> None:
        self._under_way.pop(site, None)
        if not task.cancelled():
            task.exception()  # seen: nobody may be left who waits for it

    async def _look(self, site: str) -> Site:
        now = asyncio.get_running_loop().time()
        until, error = self._failed.get(site, (0.0, None))
        if error is not None and until > now:
            raise error
        try:
            status, text, time = await self._ask(f"{site}/robots.txt")
            found = self._read(status, text), time
        except Exception as error:
            self._failed[site] = (now + KEEP_FAILED_S, error)
            raise
        self._failed.pop(site, None)
        if len(self._rules) >= MAX_SITES:
            self._rules.clear()
        self._rules[site] = found
        return found
