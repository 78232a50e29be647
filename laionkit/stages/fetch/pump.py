"""The pump: rows of several shards through network and codec at once.

One event loop in a thread of its own; a fixed number of coroutines take the next link from the
hosts' queue, so that nothing drains at a shard's border. What may heal is tried again later.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from laionkit.backends.http.client import Answer, HttpClient
from laionkit.backends.http.limits import HostQueue
from laionkit.core.runner import Outcome
from laionkit.core.schemas import Reason
from laionkit.ops.urls import UrlError, checked_url
from laionkit.stages.fetch.codec import CodecThreads
from laionkit.stages.fetch.picture import Found, Recipe
from laionkit.stages.fetch.shard import ShardUnderWay

# Failures after which the host itself, not the link, is in doubt.
HOST_FAILURES = frozenset(
    {
        Reason.CONNECT_FAILED,
        Reason.CONNECTION_LOST,
        Reason.TIMEOUT,
        Reason.DNS_TEMPORARY,
        Reason.DNS_NOT_FOUND,
        Reason.TLS_FAILED,
    }
)
# A picture cut short in the server's own file is not worth another try within the run.
RETRIED = frozenset(r for r in Reason if r.may_heal) - {Reason.TRUNCATED_IMAGE, Reason.HOST_PARKED}
MAX_BACKOFF_S = 60.0
_FILES = "file:"


@dataclass(slots=True)
class Job:
    """One row on its way."""

    shard: ShardUnderWay
    index: int
    url: str
    host: str
    expected: str | None = None
    boxes: Any = None
    attempts: int = 0


@dataclass(frozen=True)
class PumpLimits:
    """How hard the pump works. `concurrency` counts requests at once in this process."""

    concurrency: int = 64
    retries: int = 2
    backoff_s: float = 1.0
    per_host: int = 16
    per_host_rate: float = 0.0
    max_bytes: int = 32 * 2**20
    codec_threads: int = 2


class Pump:
    """Takes shards, tells `deliver` of each finished one (an Outcome) or of what went wrong."""

    def __init__(
        self,
        limits: PumpLimits,
        recipe: Recipe,
        open_client: Callable[[], HttpClient],
        deliver: Callable[[Outcome | BaseException], None],
    ) -> None:
        """Prepare; nothing runs before `start`."""
        self.limits, self.recipe, self.deliver = limits, recipe, deliver
        self._open_client = open_client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_up = threading.Event()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._main, name="fetch", daemon=True)
        self._lock = threading.Lock()
        self._news: Counter[str] = Counter()
        self._bytes_in = 0
        self.unstarted = 0

    def start(self) -> None:
        """Start the loop and wait until it stands."""
        self._thread.start()
        self._is_up.wait()

    def close(self) -> None:
        """Stop whatever is under way."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def submit(self, shard: ShardUnderWay, jobs: list[Job]) -> None:
        """Take a shard's rows that are links or files; the others are finished already."""
        assert self._loop is not None
        with self._lock:
            self.unstarted += len(jobs)
        self._loop.call_soon_threadsafe(self._queue_jobs, shard, jobs)

    def take_news(self) -> tuple[Counter[str], int]:
        """Results since the last call, by reason ("" is success), and the bytes they brought."""
        with self._lock:
            news, self._news = self._news, Counter()
            size, self._bytes_in = self._bytes_in, 0
        return news, size

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the worker's own thread
            self.deliver(error)
        finally:
            self._is_up.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.queue: HostQueue[Job] = HostQueue(self.limits.per_host, self.limits.per_host_rate)
        self.codec = CodecThreads(self.limits.codec_threads, self._loop)
        try:
            async with self._open_client() as client:
                self.client = client
                self._is_up.set()
                await self._until_stopped()
        finally:
            self.codec.close()

    async def _until_stopped(self) -> None:
        tasks = [asyncio.create_task(self._work()) for _ in range(self.limits.concurrency)]
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, *tasks):
            task.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)
        for task in done - {stop}:
            task.result()

    def _queue_jobs(self, shard: ShardUnderWay, jobs: list[Job]) -> None:
        for job in jobs:
            self.queue.put(job, job.host)
        if not shard.left:
            self._write(shard)

    async def _work(self) -> None:
        while True:
            job, host, given_up = await self.queue.get()
            if not job.attempts:
                with self._lock:
                    self.unstarted -= 1
            job.attempts += 1
            if given_up:
                self._lose(job, Answer(None, Reason.HOST_PARKED, f"{host} does not answer"))
                continue
            answer = await self._answer(job)
            failed = answer.reason in HOST_FAILURES
            self.queue.done(host, failed=failed, wait_s=answer.retry_after_s)
            if answer.body is None:
                self._retry_or_lose(job, answer)
            else:
                await self._make(job, answer.body)

    async def _answer(self, job: Job) -> Answer:
        if job.host == _FILES:
            answer: Answer = await self.codec.run(
                partial(read_file, job.url, self.limits.max_bytes)
            )
            return answer
        return await self.client.fetch(job.url)

    def _retry_or_lose(self, job: Job, answer: Answer) -> None:
        if answer.reason in RETRIED and job.attempts <= self.limits.retries:
            delay = min(self.limits.backoff_s * 2 ** (job.attempts - 1), MAX_BACKOFF_S)
            self.queue.put_later(job, job.host, delay * random.uniform(0.5, 1.5))
            return
        self._lose(job, answer)

    def _lose(self, job: Job, answer: Answer) -> None:
        found = Found(answer.reason, answer.detail)
        found.opt_out, found.bytes_in = answer.evidence, answer.bytes_in
        self._finish(job, found)

    async def _make(self, job: Job, body: bytes) -> None:
        def work() -> Found:
            found = self.recipe.make(body, job.expected, job.boxes)
            job.shard.keep_image(job.index, found)
            return found

        self._finish(job, await self.codec.run(work))

    def _finish(self, job: Job, found: Found) -> None:
        with self._lock:
            self._news[str(found.reason or "")] += 1
            self._bytes_in += found.bytes_in
        if job.shard.finish_row(job.index, found):
            self._write(job.shard)

    def _write(self, shard: ShardUnderWay) -> None:
        def write() -> None:
            try:
                self.deliver(shard.write())
            except BaseException as error:  # noqa: BLE001 - handed to the worker's own thread
                self.deliver(error)
            finally:
                shard.close()

        threading.Thread(target=write, name=f"write-{shard.name}", daemon=True).start()


def make_job(
    shard: ShardUnderWay, index: int, link: str | None, path: str | None, allow_private: bool
) -> Job | Found:
    """The job of a row, or what became of it where it cannot even be asked for."""
    if path:
        return Job(shard, index, path, _FILES)
    if not link or not link.strip():
        return Found(Reason.MISSING_URL, "the row has no link")
    try:
        _, host = checked_url(link, allow_private=allow_private)
    except UrlError as error:
        return Found(error.reason, error.detail)
    return Job(shard, index, link, host)


def read_file(path: str, max_bytes: int) -> Answer:
    """A picture from the user's own disk."""
    try:
        with Path(path).open("rb") as file:
            body = file.read(max_bytes + 1)
    except OSError as error:
        return Answer(None, Reason.FILE_MISSING, f"{path}: {error.strerror}")
    if len(body) > max_bytes:
        return Answer(None, Reason.TOO_MANY_BYTES, f"over {max_bytes} bytes")
    return Answer(body, bytes_in=len(body))
