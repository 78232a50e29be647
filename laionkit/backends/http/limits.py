"""Which link is next: fair over hosts, few at a time per host, none to a host that is dead.

Links wait in a queue of their host, not in a connection, so that a slow host holds back only
itself. A host that fails again and again is parked; its links get one final pass.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

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
# Requests at once that an unknown host gets; doubled with each answer, up to the limit.
FIRST_AT_ONCE = 2
FORGET_ABOVE = 50_000


@dataclass
class HostState(Generic[T]):
    """One host: what waits, what is under way, how it behaved."""

    at_once: int = FIRST_AT_ONCE
    waiting: deque[T] = field(default_factory=deque)
    active: int = 0
    failures: int = 0
    has_answered: bool = False
    not_before: float = 0.0
    parked: bool = False
    dead_until: float = 0.0
    is_ready: bool = False


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

    async def get(self) -> tuple[T, str, bool]:
        """The next link, its host, and whether the host was given up (then do not ask it)."""
        host, state = await self._next_host()
        job = state.waiting.popleft()
        self.queued -= 1
        given_up = state.dead_until > self._loop.time()
        if not given_up:
            state.active += 1
            state.not_before = max(state.not_before, self._loop.time() + self.gap_s)
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
        free = state.active < state.at_once and state.not_before <= now
        return bool(state.waiting) and (free or state.dead_until > now)

    def done(self, host: str, *, failed: bool, wait_s: float = 0.0) -> None:
        """Tell how a request ended: `failed` where the host gave no answer at all.

        `wait_s` is what the server asked for (429 with Retry-After).
        """
        state = self._hosts[host]
        state.active -= 1
        now = self._loop.time()
        if wait_s:
            state.not_before = max(state.not_before, now + wait_s)
            state.at_once = max(1, state.at_once // 2)
        if not failed:
            state.failures, state.parked, state.dead_until = 0, False, 0.0
            state.has_answered = True
            if not wait_s:
                state.at_once = min(self.per_host, max(1, state.at_once * 2))
        else:
            self._count_failure(state, now)
        self._make_ready(host, state)

    def _count_failure(self, state: HostState[T], now: float) -> None:
        state.failures += 1
        state.at_once = max(1, state.at_once // 2)
        bearable, passes = FAILURES_TO_PARK, 1
        if state.has_answered:
            bearable, passes = FAILURES_TO_PARK_A_LIVELY_HOST, FINAL_PASSES_OF_A_LIVELY_HOST
        in_final_pass = state.parked and state.active == 0 and now >= state.not_before
        if in_final_pass and state.failures >= bearable + passes:
            state.parked, state.dead_until, state.not_before = False, now + GIVE_UP_S, 0.0
        elif state.failures >= bearable and not state.parked and state.dead_until < now:
            state.parked, state.not_before = True, now + PARK_S
            state.at_once = 1

    def pause(self) -> None:
        """Hand out nothing until `resume`."""
        self.is_paused = True

    def resume(self, *, forget: bool = False) -> None:
        """Go on; `forget` what hosts seemed to do while the network was gone."""
        self.is_paused = False
        if forget:
            for host, state in self._hosts.items():
                state.failures, state.parked = 0, False
                state.dead_until = state.not_before = 0.0
                self._make_ready(host, state)
        self._wake(len(self._ready))

    def _state(self, host: str) -> HostState[T]:
        state = self._hosts.get(host)
        if state is None:
            if len(self._hosts) >= FORGET_ABOVE:
                self._forget()
            state = self._hosts[host] = HostState(min(FIRST_AT_ONCE, self.per_host))
        return state

    def _forget(self) -> None:
        """Drop hosts of which nothing waits, nothing is under way and nothing bad is known."""
        now = self._loop.time()
        self._hosts = {
            host: state
            for host, state in self._hosts.items()
            if state.waiting or state.active or state.dead_until > now or state.not_before > now
        }

    def _make_ready(self, host: str, state: HostState[T]) -> None:
        if state.is_ready or not state.waiting:
            return
        now = self._loop.time()
        if state.dead_until <= now:
            if state.active >= state.at_once:
                return
            if state.not_before > now:
                state.is_ready = True  # the timer below makes it so
                self._loop.call_at(state.not_before, self._after_wait, host, state)
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
