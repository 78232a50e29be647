"""Pieces of work behind the caller's back, so that the next is prepared while they run."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Behind:
    """Runs pieces of work one after the other on a thread of its own.

    Handing over a piece waits while `most` are under way: so many, and the one that the caller
    prepares, are in memory at most. What a piece raises comes out of a later call, and none of
    those after it runs.
    """

    def __init__(self, most: int = 1) -> None:
        """Start no thread yet."""
        self._most = most
        self._thread = ThreadPoolExecutor(1)
        self._under_way: deque[Future[None]] = deque()
        self._has_failed = False

    def hand_over(self, work: Callable[..., Any], *given: Any) -> None:
        """Run ``work(*given)`` once the pieces before are done."""
        self._wait_for_all_but(self._most - 1)
        self._under_way.append(self._thread.submit(self._run, work, *given))

    def wait(self) -> None:
        """Wait for what is under way."""
        self._wait_for_all_but(0)

    def close(self) -> None:
        """Wait without a word for what runs, and end the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _wait_for_all_but(self, some: int) -> None:
        while len(self._under_way) > some:
            self._under_way.popleft().result()

    def _run(self, work: Callable[..., Any], *given: Any) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        work(*given)
        self._has_failed = False
