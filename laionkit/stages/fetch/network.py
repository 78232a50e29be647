"""Telling dead links from a dead network.

A run without DNS would write shards full of false failures. While not one server answers, the
failures are only suspects: held back, and tried again when the network is there again. Servers
whose names were looked up before DNS went still answer: a name's failure is cleared by another
name's fresh lookup alone.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from laionkit.backends.http.answers import Answer
from laionkit.core.errors import StageFailed
from laionkit.core.schemas import Reason
from laionkit.stages.fetch.job import Job

# What a missing network looks like from here.
NETWORK_REASONS = frozenset(
    {Reason.DNS_TEMPORARY, Reason.DNS_NOT_FOUND, Reason.CONNECT_FAILED, Reason.TIMEOUT}
)
# So many failures in a row, at so many hosts, without one answer between them, are suspicious.
FAILURES_IN_A_ROW = 24
HOSTS_IN_A_ROW = 8
PROBES_AT_ONCE = 4
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0

_NAME_REASONS = frozenset({Reason.DNS_TEMPORARY, Reason.DNS_NOT_FOUND})

# A row, what came of it, and how many lookups had gone well by then.
Suspect = tuple[Job, Answer, int]


class NetworkWatch:
    """Holds failures back until an answer shows that they are the links' own."""

    def __init__(self) -> None:
        """Begin trusting the network."""
        self.suspects: list[Suspect] = []
        self.is_gone = False
        self._hosts: set[str] = set()
        self._alive: deque[str] = deque(maxlen=PROBES_AT_ONCE)

    def answered(self, url: str, lookups: int) -> list[Suspect]:
        """Note a link whose server answered, well or badly; return whom that clears.

        `lookups` counts names looked up well so far, none of them from a cache.
        """
        self._alive.append(url)
        if not self.suspects or self.is_gone:
            return []
        cleared: list[Suspect] = []
        kept: list[Suspect] = []
        for suspect in self.suspects:
            named = suspect[1].reason in _NAME_REASONS
            (kept if named and suspect[2] == lookups else cleared).append(suspect)
        self.suspects = kept
        self._hosts = {suspect[0].host for suspect in kept}
        return cleared

    def hold(self, job: Job, answer: Answer, lookups: int) -> bool:
        """Hold a failure back; True where the network looks gone."""
        self.suspects.append((job, answer, lookups))
        self._hosts.add(job.host)
        return len(self.suspects) >= FAILURES_IN_A_ROW and len(self._hosts) >= HOSTS_IN_A_ROW

    def let_go(self) -> list[Suspect]:
        """Take what was held back."""
        suspects, self.suspects, self._hosts = self.suspects, [], set()
        return suspects

    async def wait_until_back(
        self,
        probe: Callable[[str], Awaitable[Answer]],
        note: Callable[[str], None],
        wait_s: float,
    ) -> bool:
        """Probe until a server answers; True where it did at once, so that all was well.

        Probes go to servers that answered before, else to those that just failed. Raises
        StageFailed after `wait_s`.
        """
        loop = asyncio.get_running_loop()
        started, pause = loop.time(), FIRST_WAIT_S
        if await self._one_answers(probe):
            return True
        seen = f"{len(self.suspects)} links at {len(self._hosts)} hosts failed in a row"
        note(f"the network seems gone ({seen}, {self.suspects[-1][1].detail}): waiting for it")
        while loop.time() - started < wait_s:
            await asyncio.sleep(min(pause, max(0.05, started + wait_s - loop.time())))
            pause = min(pause * 2, LONGEST_WAIT_S)
            if await self._one_answers(probe):
                note(f"the network is back after {loop.time() - started:.0f} s")
                return False
        raise StageFailed(
            f"fetch: no server answered for {wait_s:g} s ({seen}): is the network there? None of "
            "them was recorded; run the same command again. If the links really are all dead, "
            "--network-wait-s 0 records them so"
        )

    async def _one_answers(self, probe: Callable[[str], Awaitable[Answer]]) -> bool:
        every = max(1, len(self.suspects) // PROBES_AT_ONCE)
        urls = list(self._alive) or [job.url for job, _, _ in self.suspects[::every]]
        answers = await asyncio.gather(*(probe(url) for url in urls[:PROBES_AT_ONCE]))
        return any(answer.reason not in NETWORK_REASONS for answer in answers)
