"""One piece of work behind the caller's back, so that the next is prepared while it runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class OneAhead:
    """Runs pieces of work one after the other on a thread of its own.

    Handing over a piece waits for the one before: two are in memory at most. What a piece raises
    comes out of the next call.
    """

    def __init__(self) -> None:
        """Start no thread yet."""
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[Any] | None = None

    def hand_over(self, work: Callable[..., Any], *given: Any) -> None:
        """Run ``work(*given)`` once the piece before is done."""
        self.wait()
        self._running = self._thread.submit(work, *given)

    def wait(self) -> None:
        """Wait for the piece that runs."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Wait without a word for what runs, and end the thread."""
        self._thread.shutdown()
