"""Telling dead links from a dead network.

A run without DNS would write shards full of false failures. While not one server answers, the
failures are only suspects: held back, and tried again when the network is there again. Servers
whose names were looked up before DNS went still answer: a name's failure is cleared by another
name's fresh lookup alone.

A network that wants a login answers for everybody: with a page of its own, or by leading every
link to its own server. Such answers are suspects too, for as long as they are all the same.
"""

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Awaitable, Callable

from laionkit.backends.http.answers import Answer
from laionkit.core.errors import StageFailed
from laionkit.core.schemas import Reason
from laionkit.ops.urls import host_of
from laionkit.stages.fetch.job import FILES, Job

# What a missing network looks like from here: no server answers at all, or none that one trusts.
NETWORK_REASONS = frozenset(
    {
        Reason.DNS_TEMPORARY,
        Reason.DNS_NOT_FOUND,
        Reason.CONNECT_FAILED,
        Reason.CONNECTION_LOST,
        Reason.TLS_FAILED,
        Reason.TIMEOUT,
    }
)
# So many failures in a row, at so many hosts, without one answer between them, are suspicious.
FAILURES_IN_A_ROW = 24
HOSTS_IN_A_ROW = 8
PROBES_AT_ONCE = 8
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0

_NAME_REASONS = frozenset({Reason.DNS_TEMPORARY, Reason.DNS_NOT_FOUND})
# What all failures of a missing network have in common, in place of a page.
_SILENCE = "silence"

# A row, what came of it, and how many lookups had gone well by then.
Suspect = tuple[Job, Answer, int]


def _sign(answer: Answer, led_to: str) -> str | None:
    """What an answer has in common with others of a network that is gone; None for a true one."""
    if answer.reason in NETWORK_REASONS:
        return _SILENCE
    if answer.body is not None and not answer.body[:64].lstrip().startswith(b"<"):
        return None
    if led_to:
        return led_to
    return None if answer.body is None else hashlib.sha256(answer.body).hexdigest()


class NetworkWatch:
    """Holds failures back until an answer shows that they are the links' own."""

    def __init__(self) -> None:
        """Begin trusting the network."""
        self.suspects: list[Suspect] = []
        self.is_gone = False
        self.times_gone = 0
        self._sign = ""
        self._hosts: set[str] = set()
        self._alive: deque[str] = deque(maxlen=PROBES_AT_ONCE)

    def doubts(self, job: Job, answer: Answer) -> bool:
        """Whether an answer may be a missing network's, not the link's own."""
        return bool(answer.moved_to) or _sign(answer, job.led_to) is not None

    def take(self, job: Job, answer: Answer, lookups: int) -> list[Suspect]:
        """Judge an answer, or hold it back; return those, itself among them, that are as they are.

        `lookups` counts names looked up well so far, none of them from a cache.
        """
        sign = _sign(answer, job.led_to)
        cleared = [] if sign == self._sign else self._clear(lookups)
        if sign is None:
            self._alive.append(job.link)
            return [*cleared, (job, answer, lookups)]
        if not self.is_gone:
            self._sign = sign
        self.suspects.append((job, answer, lookups))
        self._hosts.add(job.host if sign == _SILENCE else job.home)
        return cleared

    @property
    def looks_gone(self) -> bool:
        """Whether too much in a row failed in the same way."""
        return len(self.suspects) >= FAILURES_IN_A_ROW and len(self._hosts) >= HOSTS_IN_A_ROW

    def _clear(self, lookups: int) -> list[Suspect]:
        """Take those that an answer of another kind shows to be as they are."""
        if self.is_gone:
            return []
        cleared: list[Suspect] = []
        kept: list[Suspect] = []
        for suspect in self.suspects:
            named = suspect[1].reason in _NAME_REASONS
            (kept if named and suspect[2] == lookups else cleared).append(suspect)
        self.suspects = kept
        self._hosts = {suspect[0].host for suspect in kept}
        return cleared

    def let_go(self) -> list[Suspect]:
        """Take what was held back."""
        suspects, self.suspects, self._hosts = self.suspects, [], set()
        return suspects

    async def wait_until_back(
        self,
        probe: Callable[[str], Awaitable[Answer]],
        unasked: Callable[[int], list[Job]],
        note: Callable[[str], None],
        wait_s: float,
    ) -> bool:
        """Probe until a server answers; True where it did at once, so that all was well.

        Probes go to servers that answered before; where none did yet, to those that just failed
        and to some of the `unasked`. Raises StageFailed after `wait_s`.
        """
        loop = asyncio.get_running_loop()
        started, pause = loop.time(), FIRST_WAIT_S
        if await self._one_answers(probe, unasked):
            return True
        seen = f"{len(self.suspects)} links at {len(self._hosts)} hosts failed in a row"
        seen = f"{seen}, {self._what()}"
        note(f"the network seems gone ({seen}): waiting for it")
        while loop.time() - started < wait_s:
            await asyncio.sleep(min(pause, max(0.05, started + wait_s - loop.time())))
            pause = min(pause * 2, LONGEST_WAIT_S)
            if await self._one_answers(probe, unasked):
                note(f"the network is back after {loop.time() - started:.0f} s")
                self.times_gone += 1
                return False
        raise StageFailed(
            f"fetch: no server answered for {wait_s:g} s ({seen}): is the network there? None of "
            "them was recorded; run the same command again. If the links really are all dead, "
            "--network-wait-s 0 records them so"
        )

    async def _one_answers(
        self, probe: Callable[[str], Awaitable[Answer]], unasked: Callable[[int], list[Job]]
    ) -> bool:
        urls = list(self._alive)
        if not urls:
            failed = random.sample([job for job, _, _ in self.suspects], PROBES_AT_ONCE // 2)
            others = unasked(PROBES_AT_ONCE - len(failed))
            urls = [job.link for job in (*failed, *others) if job.home != FILES]
        answers = await asyncio.gather(*(probe(url) for url in urls))
        signs = {_sign(answer, host_of(answer.moved_to)) for answer in answers}
        return bool(signs - {_SILENCE, self._sign})

    def _what(self) -> str:
        job, answer, _ = self.suspects[-1]
        if self._sign == _SILENCE:
            return answer.detail
        return f"all led to {job.led_to}" if job.led_to else "all gave the same page"
