"""A worker's process, and how it talks to the Runner that started it.

Messages are (kind, payload): ``next`` asks for a shard, ``outcome`` and ``event`` bring news,
``bye``, ``failed``, ``full`` (the disk) and ``stop`` are the last.
"""

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from laionkit.core.errors import LaionkitError, StageFailed, is_disk_full
from laionkit.core.work import OpenWorker, Site


@dataclass
class Child:
    """A worker process and the parent's end of its pipe."""

    number: int
    process: BaseProcess
    pipe: Connection
    in_flight: set[str] = field(default_factory=set)
    said_bye: bool = False

    @classmethod
    def start(cls, context: Any, open_worker: OpenWorker, site: Site) -> "Child":
        """Start a process; `context` is multiprocessing's."""
        ours, theirs = context.Pipe()
        process = context.Process(target=_main, args=(theirs, open_worker, site), daemon=True)
        # Ctrl-C reaches the whole group: the parent decides, and terminates its children. They are
        # born deaf to it, since it may come while they still import.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        return cls(site.worker, process, ours)

    def join(self) -> None:
        """Wait for its end, ten seconds at most."""
        self.pipe.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()


def _main(pipe: Connection, open_worker: OpenWorker, site: Site) -> None:
    """Run one worker in a child process, talking to the parent over `pipe`. Never returns."""
    gc.freeze()  # what is loaded stays: the collector need not look at it again and again
    lock = threading.Lock()

    def send(kind: str, payload: object = None) -> None:
        with lock:
            pipe.send((kind, payload))

    def take() -> str | None:
        send("next")
        shard: str | None = pipe.recv()
        return shard

    site = replace(site, report=lambda event: send("event", event))
    try:
        with open_worker(site) as worker:
            for outcome in worker.process(feed(take, set())):
                send("outcome", outcome)
        send("bye")
    except (BrokenPipeError, EOFError):
        os._exit(1)  # the parent is gone: nobody is left to tell
    except LaionkitError as error:
        send("stop", error)
    except Exception as error:  # the shard boundary: the parent retries what was in flight
        if is_disk_full(error):
            send("full")
        send("failed", (one_line(error), traceback.format_exc()))
    # Nothing is left to do, and ending the interpreter would walk all that it ever loaded.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def feed(take: Callable[[], str | None], in_flight: set[str]) -> Iterator[str]:
    """Hand out shards until none is left, noting those under way."""
    while (shard := take()) is not None:
        in_flight.add(shard)
        yield shard


def one_line(error: BaseException) -> str:
    """Name an error in at most 500 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def disk_full(where: str) -> StageFailed:
    """Say what a full disk means for a run."""
    return StageFailed(
        f"no space left on the disk of {where}. Finished shards are safe: make room and run again"
    )
