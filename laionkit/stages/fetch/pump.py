"""The pump: rows of several shards through network and codec at once.

One event loop in a thread of its own; its hands take the next link from the hosts' queue, so that
nothing drains at a shard's border. What may heal is tried again later.
"""

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from laionkit.backends.http.answers import Answer
from laionkit.backends.http.client import HttpClient
from laionkit.backends.http.limits import HostQueue
from laionkit.core.runner import Outcome
from laionkit.core.schemas import Reason
from laionkit.ops.stored_image import Found, ImageMaker
from laionkit.stages.fetch.codec import CodecThreads
from laionkit.stages.fetch.decoders import Decoders
from laionkit.stages.fetch.job import FILES, Job, read_file
from laionkit.stages.fetch.network import NETWORK_REASONS, NetworkWatch
from laionkit.stages.fetch.news import News
from laionkit.stages.fetch.shard import ShardUnderWay

# A picture cut short in the server's own file is not worth another try within the run.
RETRIED = frozenset(r for r in Reason if r.may_heal) - {Reason.TRUNCATED_IMAGE, Reason.HOST_PARKED}
MAX_BACKOFF_S = 60.0
# A request that takes so long, and so many times as long as they usually do, lends its place to
# another, so that slow hosts do not slow the rest. Where all are slow the line is full, and more
# requests would make it worse. With a tenth of 1,000 hosts bad, 75 of them hold 150 places; the
# fifteen-fold is what a tenth of all links take that wait 10 s while the others take half a second.
SLOW_S, SLOW_TIMES = 1.5, 4
LENT_TIMES = 8
# None is lent while unfinished bodies take so much: 500 slow requests of 32 MB would be 16 GB.
MOST_HELD_BYTES = 256 * 2**20
LOOK_EVERY_S = 0.25
# After so long without a link finished, the user is told what is waited for.
SILENCE_S = 30.0
# A site that makes the run so much longer by the delay it asks for is named.
LONG_S = 600.0
_GIVEN_UP = {
    Reason.HOST_PARKED: "does not answer",
    Reason.HTTP_RATE_LIMITED: "asks to be left alone for longer than a run waits",
}
# Weight of the latest request in what they usually take.
NEWEST = 0.05


@dataclass(frozen=True)
class PumpLimits:
    """How hard the pump works. `concurrency` counts requests at once in this process.

    `crawl_delay_times`: how many processes share what a site's robots.txt allows, 0 to ignore it.
    """

    concurrency: int = 64
    retries: int = 2
    backoff_s: float = 1.0
    per_host: int = 16
    per_host_rate: float = 0.0
    timeout_s: float = 10.0
    crawl_delay_times: float = 1.0
    max_bytes: int = 32 * 2**20
    network_wait_s: float = 600.0
    decode_timeout_s: float = 30.0
    codec_threads: int = 2


class Pump:
    """Takes shards, tells `deliver` of each finished one (an Outcome) or of what went wrong."""

    def __init__(
        self,
        limits: PumpLimits,
        maker: ImageMaker,
        open_client: Callable[[], HttpClient],
        deliver: Callable[[Outcome | BaseException], None],
        note: Callable[[str], None],
    ) -> None:
        """Prepare; nothing runs before `start`."""
        self.limits, self.maker, self.deliver, self.note = limits, maker, deliver, note
        self._open_client = open_client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_up = threading.Event()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._main, name="fetch", daemon=True)
        self._writers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._news = News()
        self.unstarted = 0
        # Whether links in a moment could clear, or damn, those that failed by now.
        self.more_will_come = True

    def start(self) -> None:
        """Start the loop and wait until it stands."""
        self._thread.start()
        self._is_up.wait()

    def close(self) -> None:
        """Stop whatever is under way."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        for writer in self._writers:
            writer.join()

    def submit(self, shard: ShardUnderWay, jobs: list[Job]) -> None:
        """Take a shard's rows that are links or files; the others are finished already."""
        assert self._loop is not None
        with self._lock:
            self.unstarted += len(jobs)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue_jobs, shard, jobs)

    @property
    def idle_hands(self) -> int:
        """Hands that wait for a link that may be asked for now."""
        return self.queue.idle

    def take_news(self) -> "News":
        """What came of links since the last call."""
        with self._lock:
            news, self._news = self._news, News()
        return news

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseExceptionGroup as group:
            self.deliver(group.exceptions[0])
        except BaseException as error:  # noqa: BLE001 - handed to the worker's own thread
            self.deliver(error)
        finally:
            self._is_up.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._now = self._loop.time
        self._asking: dict[Job, float] = {}
        self._usual_s, self._heard_at = 0.0, self._now()
        self._told: set[str] = set()
        self._hands, self._hands_wanted = 0, self.limits.concurrency
        self.watch = NetworkWatch()
        self.queue: HostQueue[Job] = HostQueue(self.limits.per_host, self.limits.per_host_rate)
        self.decoders = Decoders(self.maker, self.limits.decode_timeout_s)
        self.codec = CodecThreads(self.limits.codec_threads, self._loop)
        try:
            async with self._open_client() as client:
                self.client = client
                self._is_up.set()
                await self._until_stopped()
        finally:
            self.decoders.close()
            self.codec.close()

    async def _until_stopped(self) -> None:
        crew: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            for _ in range(self.limits.concurrency):
                self._add_hand(group, crew)
            lender = group.create_task(self._lend(group, crew))
            await self._stop.wait()
            for task in (lender, *crew):
                task.cancel()

    def _add_hand(self, group: asyncio.TaskGroup, crew: set[asyncio.Task[None]]) -> None:
        self._hands += 1
        task = group.create_task(self._work())
        crew.add(task)
        task.add_done_callback(crew.discard)

    async def _lend(self, group: asyncio.TaskGroup, crew: set[asyncio.Task[None]]) -> None:
        """Add a hand for every request that is slow beside the others, up to a bound.

        Where nothing is left to ask for, what was held back has had its chance.
        """
        most = self.limits.concurrency
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not (self.more_will_come or self.queue.queued or self._asking):
                await self._judge_suspects()
            self._break_silence()
            late = self._now() - max(SLOW_S, SLOW_TIMES * self._usual_s)
            slow = 0
            if self.client.bytes_held < MOST_HELD_BYTES:
                slow = sum(1 for started in self._asking.values() if started < late)
            self._hands_wanted = most + min(slow, LENT_TIMES * most)
            while self._hands < self._hands_wanted and not self._stop.is_set():
                self._add_hand(group, crew)

    def _tell_delay(self, host: str, delay_s: float) -> None:
        """Say once which sites will take long because they ask to be asked slowly."""
        left_s = self.queue.last_start_in_s(host)
        if left_s > LONG_S and self.limits.crawl_delay_times and host not in self._told:
            self._told.add(host)
            self.note(
                f"the robots.txt of {host} asks for {delay_s:g} s between requests, which will "
                f"take {left_s / 60:,.0f} minutes: --no-crawl-delay does without"
            )

    def _break_silence(self) -> None:
        if self.watch.is_gone or self._now() - self._heard_at < SILENCE_S:
            return
        self._heard_at = self._now()
        if hosts := self.queue.waited_for():
            others = f" and {len(hosts) - 3:,} more" if len(hosts) > 3 else ""
            links = f"{self.queue.queued + len(self._asking):,} links wait"
            where = f"hosts that are slow, busy or dead: {', '.join(hosts[:3])}{others}"
            self.note(f"no link was finished for {SILENCE_S:g} s; {links} for {where}")

    def _queue_jobs(self, shard: ShardUnderWay, jobs: list[Job]) -> None:
        for job in jobs:
            self.queue.put(job, job.host)
        if not shard.left:
            self._write(shard)

    async def _work(self) -> None:
        try:
            while self._hands <= self._hands_wanted:
                await self._do(*await self.queue.get())
        finally:
            self._hands -= 1

    async def _do(self, job: Job, host: str, given_up: Reason | None) -> None:
        if not job.attempts:
            with self._lock:
                self.unstarted -= 1
        if not job.hops:
            job.attempts += 1
        if given_up is not None:
            detail = f"{host} {_GIVEN_UP[given_up]}"
            self._lose(job, Answer(None, given_up, detail))
            return
        times_gone = self.watch.times_gone
        answer = await self._ask(job)
        self.queue.done(
            host,
            failed=answer.reason in NETWORK_REASONS,
            busy=answer.is_busy,
            rest_s=answer.retry_after_s,
            gap_s=answer.gap_s * self.limits.crawl_delay_times,
        )
        if answer.gap_s:
            self._tell_delay(host, answer.gap_s)
        if times_gone != self.watch.times_gone and self.watch.doubts(job, answer):
            self._begin_anew(job)
        elif answer.moved_to:
            job.move(answer)
            self.queue.put(job, job.host)
        elif host == FILES or not self.limits.network_wait_s:
            await self._settle(job, answer)
        else:
            for suspect, seen, _ in self.watch.take(job, answer, self.client.resolver.lookups):
                await self._settle(suspect, seen)
            if self.watch.looks_gone and not self.watch.is_gone:
                await self._sit_out()

    async def _ask(self, job: Job) -> Answer:
        self._asking[job] = self._now()
        try:
            if job.host == FILES:
                work = partial(read_file, job.url, self.limits.max_bytes)
                answer: Answer = await self.codec.run(work)
                return answer
            left_s = self.limits.timeout_s - job.spent_s
            return await self.client.step(job.url, job.hops, left_s)
        finally:
            took_s = self._now() - self._asking.pop(job)
            job.asked_s += took_s
            job.spent_s += took_s

    async def _settle(self, job: Job, answer: Answer) -> None:
        """Take an answer as the link's own: what was brought, or why nothing was."""
        if job.home != FILES and answer.reason not in NETWORK_REASONS:
            self._usual_s += NEWEST * (job.spent_s - self._usual_s)
        if answer.body is None:
            self._retry_or_lose(job, answer)
        else:
            await self._make(job, answer.body)

    async def _judge_suspects(self) -> None:
        """The network is there: what was held back is the links' own failure."""
        if not self.watch.is_gone:
            for job, answer, _ in self.watch.let_go():
                await self._settle(job, answer)

    async def _sit_out(self) -> None:
        """Stop asking until the network is there; then try again what failed meanwhile."""
        self.watch.is_gone = True
        self.queue.pause()
        all_was_well = await self.watch.wait_until_back(
            self.client.probe, self.queue.sample, self.note, self.limits.network_wait_s
        )
        self.watch.is_gone = False
        if all_was_well:
            await self._judge_suspects()
        else:
            under_way = self.queue.withdraw(lambda job: bool(job.hops))
            for job in (*under_way, *(job for job, _, _ in self.watch.let_go())):
                self._begin_anew(job)
        self.queue.resume(forget=not all_was_well)

    def _begin_anew(self, job: Job) -> None:
        """Ask for a link as if it had not been: the network was gone."""
        job.go_home()
        job.attempts -= 1
        with self._lock:
            self.unstarted += not job.attempts
        self.queue.put(job, job.host)

    def _retry_or_lose(self, job: Job, answer: Answer) -> None:
        if answer.reason in RETRIED and job.attempts <= self.limits.retries:
            delay = min(self.limits.backoff_s * 2 ** (job.attempts - 1), MAX_BACKOFF_S)
            job.go_home()
            self.queue.put_later(job, job.host, delay * random.uniform(0.5, 1.5))
            return
        self._lose(job, answer)

    def _lose(self, job: Job, answer: Answer) -> None:
        found = Found(answer.reason, answer.detail)
        found.opt_out, found.bytes_in = answer.evidence, answer.bytes_in
        self._finish(job, found)

    async def _make(self, job: Job, body: bytes) -> None:
        def work() -> Found:
            found = self.decoders.make(body, job.expected, job.boxes)
            job.shard.keep_image(job.index, found)
            return found

        found: Found = await self.codec.run(work)
        self._finish(job, found)

    def _finish(self, job: Job, found: Found) -> None:
        found.asked_s = job.asked_s
        self._heard_at = self._now()
        with self._lock:
            self._news.take(found, job.home)
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

        writer = threading.Thread(target=write, name=f"write-{shard.name}", daemon=True)
        self._writers = [thread for thread in self._writers if thread.is_alive()] + [writer]
        writer.start()
