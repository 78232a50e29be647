"""Threads that read files and feed decoders beside the event loop.

They wait for disks and for the decoders' processes, not for the interpreter. Finished work wakes
the loop once for many results, since a wake-up costs more than it tells.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

CLOSE_WAIT_S = 5.0


class CodecThreads:
    """Runs functions in a few threads for one event loop."""

    def __init__(self, threads: int, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads."""
        self._loop = loop
        self._work: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None]
        self._work = queue.SimpleQueue()
        self._finished: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._is_woken = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        for number in range(threads):
            name = f"codec-{number}"
            self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
            self._threads[-1].start()

    def run(self, work: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Run `work` in a thread; await the future for its result."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._work.put((future, work))
        return future

    def close(self) -> None:
        """Let the threads end after what they are doing, and wait for that a little."""
        self._is_closed = True
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(CLOSE_WAIT_S)

    def _run(self) -> None:
        while (item := self._work.get()) is not None and not self._is_closed:
            future, work = item
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:  # noqa: BLE001 - handed to who awaits the future
                error = caught
            self._finished.append((future, result, error))
            with self._lock:
                wake = not self._is_woken
                self._is_woken = True
            if wake and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        with self._lock:
            self._is_woken = False
        while self._finished:
            future, result, error = self._finished.popleft()
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)
