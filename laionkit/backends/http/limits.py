"""Which link is next: fair over hosts, few at a time per host, none to a host that is dead.

Links wait in a queue of their host, not in a connection, so that a slow host holds back only
itself. A host that fails again and again is parked; its links get one final pass. One that is busy
(429) is left to rest, longer each time.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from laionkit.core.schemas import Reason

T = TypeVar("T")

# A host that never answered is parked after so many failures in a row, and given up when its
# final pass fails once.
FAILURES_TO_PARK = 4
# One that did answer has bad links among good ones: it takes more of them in a row to say that it
# died, and as many final passes.
FAILURES_TO_PARK_A_LIVELY_HOST = 24
FINAL_PASSES_OF_A_LIVELY_HOST = 3
PARK_S = 15.0
# After a failed final pass nothing is sent to the host for so long.
GIVE_UP_S = 300.0
# How long a busy host that does not say so itself is left to rest, give or take half; doubled each
# time that it is busy still. After so many times in a row it is given up, as is one that asks for
# longer than GIVE_UP_S: a run does not wait an hour for one host.
REST_S = 1.0
RESTS = 5
# Requests at once that an unknown host gets; doubled with each answer, up to the limit.
FIRST_AT_ONCE = 2
# A host takes 1 kB. Those of which nothing is known but good are forgotten above so many.
FORGET_ABOVE = 20_000


@dataclass(slots=True)
class HostState(Generic[T]):
    """One host: what waits, what is under way, how it behaved.

    `not_before` keeps its rate or parks it; `rests_until` is what it asked for itself.
    """

    at_once: int = FIRST_AT_ONCE
    waiting: deque[T] = field(default_factory=deque)
    active: int = 0
    failures: int = 0
    rests: int = 0
    has_answered: bool = False
    gap_s: float = 0.0
    not_before: float = 0.0
    rests_until: float = 0.0
    parked: bool = False
    given_up_until: float = 0.0
    given_up_for: Reason = Reason.HOST_PARKED
    is_ready: bool = False

    @property
    def next_start(self) -> float:
        """When it may be asked again."""
        return max(self.not_before, self.rests_until)


class HostQueue(Generic[T]):
    """Hands out links host by host in turn. All calls belong to one event loop."""

    def __init__(self, per_host: int, per_host_rate: float = 0.0) -> None:
        """At most `per_host` at once and `per_host_rate` starts a second (0: any) for each host."""
        self.per_host = max(1, per_host)
        self.gap_s = 1 / per_host_rate if per_host_rate > 0 else 0.0
        self.queued = 0
        self.is_paused = False
        self._hosts: dict[str, HostState[T]] = {}
        self._ready: deque[str] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._forget_above = FORGET_ABOVE
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> int:
        """How many callers of `get` wait."""
        return len(self._getters)

    def put(self, job: T, host: str) -> None:
        """Queue a link."""
        state = self._state(host)
        state.waiting.append(job)
        self.queued += 1
        self._make_ready(host, state)

    def put_later(self, job: T, host: str, delay_s: float) -> None:
        """Queue a link again after a while."""
        self._loop.call_later(delay_s, self.put, job, host)

    async def get(self) -> tuple[T, str, Reason | None]:
        """The next link, its host, and why the host was given up, if it was: then do not ask it."""
        host, state = await self._next_host()
        job = state.waiting.popleft()
        self.queued -= 1
        now = self._loop.time()
        given_up = state.given_up_for if state.given_up_until > now else None
        if given_up is None:
            state.active += 1
            state.not_before = max(state.not_before, now + max(self.gap_s, state.gap_s))
        self._make_ready(host, state)
        return job, host, given_up

    async def _next_host(self) -> tuple[str, HostState[T]]:
        while True:
            while self.is_paused or not self._ready:
                waiter = self._loop.create_future()
                self._getters.append(waiter)
                try:
                    await waiter
                finally:
                    if waiter in self._getters:
                        self._getters.remove(waiter)
            host = self._ready.popleft()
            state = self._hosts[host]
            state.is_ready = False
            if self._may_start(state):
                return host, state
            self._make_ready(host, state)  # it was told to wait since it became ready

    def _may_start(self, state: HostState[T]) -> bool:
        now = self._loop.time()
        free = state.active < state.at_once and state.next_start <= now
        return bool(state.waiting) and (free or state.given_up_until > now)

    def done(
        self,
        host: str,
        *,
        failed: bool,
        busy: bool = False,
        rest_s: float = 0.0,
        gap_s: float = 0.0,
    ) -> None:
        """Tell how a request ended: `failed` where the host gave no answer at all.

        `busy` where it answered that it is; `rest_s` is then what it asked for (Retry-After), 0
        where it did not say. From now on its requests start `gap_s` apart at least.
        """
        state = self._hosts[host]
        state.active -= 1
        now = self._loop.time()
        if gap_s > state.gap_s:
            state.gap_s, state.not_before = gap_s, max(state.not_before, now + gap_s)
        if failed:
            self._count_failure(state, now)
        else:
            state.failures, state.parked, state.has_answered = 0, False, True
            if busy:
                self._let_rest(state, now, rest_s)
            else:
                state.rests, state.given_up_until = 0, 0.0
                state.at_once = min(self.per_host, max(1, state.at_once * 2))
        self._make_ready(host, state)

    def _let_rest(self, state: HostState[T], now: float, asked_s: float) -> None:
        """Leave a busy host alone; of answers to requests at the same time the first one counts."""
        if now >= state.rests_until:
            state.rests += 1
            state.at_once = max(1, state.at_once // 2)
        rest_s = asked_s
        if not asked_s or state.rests > 1:  # what it asked for was not enough
            rest_s = max(asked_s, REST_S * 2.0 ** (state.rests - 1) * random.uniform(0.5, 1.5))
        if rest_s > GIVE_UP_S or state.rests > RESTS:
            state.given_up_for = Reason.HTTP_RATE_LIMITED
            state.given_up_until = max(state.given_up_until, now + max(rest_s, GIVE_UP_S))
            state.rests = 0
        elif asked_s or now >= state.rests_until:
            state.rests_until = max(state.rests_until, now + rest_s)

    def _count_failure(self, state: HostState[T], now: float) -> None:
        state.failures += 1
        state.at_once = max(1, state.at_once // 2)
        bearable, passes = FAILURES_TO_PARK, 1
        if state.has_answered:
            bearable, passes = FAILURES_TO_PARK_A_LIVELY_HOST, FINAL_PASSES_OF_A_LIVELY_HOST
        in_final_pass = state.parked and state.active == 0 and now >= state.not_before
        if in_final_pass and state.failures >= bearable + passes:
            state.parked, state.not_before = False, 0.0
            state.given_up_until, state.given_up_for = now + GIVE_UP_S, Reason.HOST_PARKED
        elif state.failures >= bearable and not state.parked and state.given_up_until < now:
            state.parked, state.not_before = True, now + PARK_S
            state.at_once = 1

    def gaps(self) -> dict[str, float]:
        """Hosts that asked for a delay between requests, with its seconds."""
        return {host: state.gap_s for host, state in self._hosts.items() if state.gap_s}

    def last_start_in_s(self, host: str) -> float:
        """Seconds until the last of a host's links can start, by its rate alone."""
        state = self._hosts[host]
        return len(state.waiting) * max(self.gap_s, state.gap_s)

    def waited_for(self) -> list[str]:
        """Hosts of which links wait or are under way, those with most links first."""
        left = {h: len(s.waiting) + s.active for h, s in self._hosts.items()}
        return sorted((host for host, n in left.items() if n), key=lambda h: -left[h])

    def sample(self, count: int) -> list[T]:
        """Some of the links that wait, each of another host."""
        waiting = [state.waiting for state in self._hosts.values() if state.waiting]
        return [random.choice(jobs) for jobs in random.sample(waiting, min(count, len(waiting)))]

    def withdraw(self, chosen: Callable[[T], bool]) -> list[T]:
        """Take links back that wait and are `chosen`."""
        taken: list[T] = []
        for state in self._hosts.values():
            if any(map(chosen, state.waiting)):
                taken += filter(chosen, state.waiting)
                state.waiting = deque(job for job in state.waiting if not chosen(job))
        self.queued -= len(taken)
        return taken

    def pause(self) -> None:
        """Hand out nothing until `resume`."""
        self.is_paused = True

    def resume(self, *, forget: bool = False) -> None:
        """Go on; `forget` what hosts seemed to do without a network, not what they asked for."""
        self.is_paused = False
        if forget:
            for host, state in self._hosts.items():
                state.failures, state.parked, state.not_before = 0, False, 0.0
                if state.given_up_for == Reason.HOST_PARKED:
                    state.given_up_until = 0.0
                self._make_ready(host, state)
        self._wake(len(self._ready))

    def _state(self, host: str) -> HostState[T]:
        state = self._hosts.get(host)
        if state is None:
            if len(self._hosts) >= self._forget_above:
                self._forget()
            state = self._hosts[host] = HostState(min(FIRST_AT_ONCE, self.per_host))
        return state

    def _forget(self) -> None:
        """Drop hosts of which nothing waits, nothing is under way and nothing bad is known.

        Where few could be dropped the next look is put off, or each new host would cost one.
        """
        now = self._loop.time()
        self._hosts = {
            host: state
            for host, state in self._hosts.items()
            if state.waiting or state.active or max(state.given_up_until, state.next_start) > now
        }
        self._forget_above = max(FORGET_ABOVE, 2 * len(self._hosts))

    def _make_ready(self, host: str, state: HostState[T]) -> None:
        if state.is_ready or not state.waiting:
            return
        now = self._loop.time()
        if state.given_up_until <= now:
            if state.active >= state.at_once:
                return
            if state.next_start > now:
                state.is_ready = True  # the timer below makes it so
                self._loop.call_at(state.next_start, self._after_wait, host, state)
                return
        state.is_ready = True
        self._ready.append(host)
        self._wake(1)

    def _after_wait(self, host: str, state: HostState[T]) -> None:
        state.is_ready = False
        self._make_ready(host, state)

    def _wake(self, count: int) -> None:
        if self.is_paused:
            return
        for _ in range(min(count, len(self._getters))):
            waiter = self._getters.popleft()
            if not waiter.done():
                waiter.set_result(None)
