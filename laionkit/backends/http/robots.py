"""robots.txt of each site, asked for once and kept while the run lasts."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from laionkit.backends.http.policy import RobotsRules

# (site) -> status and text; 0 where the site did not answer.
Ask = Callable[[str], Awaitable[tuple[int, str]]]
MAX_SITES = 100_000


class RobotsCache:
    """Rules per site (scheme, host, port). Links of one site share one request."""

    def __init__(self, ask: Ask, read: Callable[[int, str], RobotsRules]) -> None:
        """`ask` fetches a robots.txt, `read` turns it into rules."""
        self._ask, self._read = ask, read
        self._rules: dict[str, RobotsRules | None] = {}
        self._under_way: dict[str, asyncio.Task[RobotsRules | None]] = {}

    async def allows(self, url: str) -> bool:
        """Whether the site's robots.txt allows a URL.

        A site that does not answer is not judged here: the link itself will fail, with its reason.
        """
        parts = urlsplit(url)
        site = f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
        if site in self._rules:
            rules = self._rules[site]
        else:
            task = self._under_way.get(site)
            if task is None:
                task = asyncio.create_task(self._look(site))
                self._under_way[site] = task
                task.add_done_callback(lambda _: self._under_way.pop(site, None))
            rules = await asyncio.shield(task)
        path = parts.path or "/"
        return rules is None or rules.allows(f"{path}?{parts.query}" if parts.query else path)

    async def _look(self, site: str) -> RobotsRules | None:
        status, text = await self._ask(f"{site}/robots.txt")
        if len(self._rules) >= MAX_SITES:
            self._rules.clear()
        rules = self._read(status, text) if status else None
        if status:
            self._rules[site] = rules
        return rules
