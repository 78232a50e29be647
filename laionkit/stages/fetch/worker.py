"""The worker: opened once per process with what is costly, then fed shards, several in flight."""

import logging
import os
import queue
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa

from laionkit.backends.http.client import ClientLimits, HttpClient
from laionkit.backends.http.dns import DnsClient
from laionkit.backends.http.throttle import Throttle
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.progress import Counts, Note, SamplesDone
from laionkit.core.runner import Outcome, Site
from laionkit.core.worklist import WorkList
from laionkit.ops.stored_image import ImageMaker
from laionkit.stages.fetch.agent import user_agent
from laionkit.stages.fetch.config import FetchConfig
from laionkit.stages.fetch.hidden import Hidden
from laionkit.stages.fetch.job import Job, make_job
from laionkit.stages.fetch.policy import make_policy
from laionkit.stages.fetch.pump import Pump, PumpLimits
from laionkit.stages.fetch.retry import Earlier, RetryPlan
from laionkit.stages.fetch.shard import ShardUnderWay

MOST_SHARDS_IN_FLIGHT = 4
# So many while half the hands have nothing to ask for: shards that wait for dead and slow hosts
# must not keep the others from beginning.
MOST_SHARDS_WAITED_FOR = 16
NEWS_EVERY_S = 1.0


@dataclass(frozen=True)
class Sample:
    """Rows in place of a shard's, and where they go instead of the dataset."""

    rows: pa.Table
    output: Folder


class FetchWorker:
    """Fetches shards with laionkit's own engine."""

    def __init__(
        self,
        dataset: str,
        config: FetchConfig,
        retry: RetryPlan | None,
        site: Site,
        sample: Sample | None = None,
    ) -> None:
        """Read the blocklist and open the work list; the network waits for `__enter__`."""
        self.sample = sample
        self.dataset, self.config, self.retry, self.site = Folder(dataset), config, retry, site
        self.work_list = WorkList.open(self.dataset)
        self.hidden = Hidden(self.dataset)
        self.under_way: dict[str, ShardUnderWay] = {}
        self.inbox: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        maker = image_maker(config)
        self.pump = Pump(
            pump_limits(config, site), maker, self._open_client, self.inbox.put, self._note
        )
        self.extra = tuple(
            name
            for name, asked in (("md5", config.compute_md5), ("phash", config.compute_phash))
            if asked
        )

    def __enter__(self) -> "FetchWorker":
        """Start the event loop."""
        self.pump.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the event loop and drop what is unfinished."""
        self.pump.close()
        for shard in self.under_way.values():
            shard.close()
        self.work_list.close()

    def process(self, shards: Iterator[str]) -> Iterator[Outcome]:
        """Keep enough shards in flight that connections never wait for a shard's end."""
        in_flight, is_last, waited = 0, False, False
        told = time.monotonic()
        while in_flight or not is_last:
            while not is_last and self._wants_shard(in_flight, waited):
                shard = next(shards, None)
                is_last, waited = shard is None, False
                if shard is not None:
                    self._begin(shard)
                    in_flight += 1
            self.pump.more_will_come = not is_last and in_flight < MOST_SHARDS_WAITED_FOR
            if time.monotonic() - told >= NEWS_EVERY_S:
                told = time.monotonic()
                self._tell()
            if not in_flight:
                continue
            try:
                outcome = self.inbox.get(timeout=0.1)
            except queue.Empty:
                waited = True
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            in_flight -= 1
            self.under_way.pop(outcome.shard)
            self._tell()
            yield outcome

    def _wants_shard(self, in_flight: int, waited: bool) -> bool:
        """Whether too few links are left to start, or, after a while, too few that may start."""
        if in_flight < MOST_SHARDS_IN_FLIGHT and self.pump.unstarted < 2 * self.config.concurrency:
            return True
        idle = 2 * self.pump.idle_hands > self.config.concurrency
        return waited and idle and in_flight < MOST_SHARDS_WAITED_FOR

    def _tell(self) -> None:
        news = self.pump.take_news()
        if news.ok or news.reasons:
            counts = Counts.of(news.ok, news.reasons)
            self.site.report(SamplesDone("fetch", counts, news.bytes_in, news.hosts))

    def _begin(self, name: str) -> None:
        output, earlier = self.dataset, None
        if self.sample is not None:
            rows, output = self.sample.rows, self.sample.output
        else:
            rows, earlier = read_rows(self.dataset, self.work_list, self.retry, name)
        under_way = ShardUnderWay(
            name,
            rows,
            output,
            self.config.encode_format,
            (*self.extra, "opt_out"),
            earlier,
        )
        self.under_way[name] = under_way
        jobs: list[Job] = []
        links, paths = _values(rows, "url"), _values(rows, "path")
        hashes, boxes = self._expected(rows), _values(rows, self.config.bbox_column)
        hidden = self.hidden.of(rows)
        for index in range(rows.num_rows):
            job = hidden.get(index) or make_job(
                under_way, index, links[index], paths[index], self.config.allow_private
            )
            if isinstance(job, Job):
                job.expected, job.boxes = hashes[index], boxes[index]
                jobs.append(job)
            else:
                under_way.finish_row(index, job)
        if earlier is not None:
            # Were the links that fail again always asked for first, they would park their host
            # each time, and those behind them would never have their turn.
            random.shuffle(jobs)
        self.pump.submit(under_way, jobs)

    def _expected(self, rows: pa.Table) -> list[str | None]:
        kind = self.config.verify_hash
        if kind == "no":
            return [None] * rows.num_rows
        named = self.config.verify_column
        for column in (named,) if named else (f"src_{kind}", kind):
            if column in rows.column_names:
                return _values(rows, column)
        raise InputError(
            f"verify_hash={kind}: the rows have no column {named or 'src_' + kind}; they have "
            f"{', '.join(rows.column_names)}: name it with --verify-column"
        )

    def _open_client(self) -> HttpClient:
        config = self.config
        limits = ClientLimits(
            config.timeout_s,
            config.max_bytes,
            config.max_redirects,
            config.verify_tls,
            user_agent(config.contact),
        )
        rate = bytes_per_s(config, self.site)
        return HttpClient(
            limits,
            make_policy(config),
            lookup=DnsClient(config.resolver).look_up if config.resolver else None,
            throttle=Throttle(rate) if rate else None,
        )

    def _note(self, text: str) -> None:
        self.site.report(Note("fetch", text, logging.WARNING))


def read_rows(
    dataset: Folder, work_list: WorkList, retry: RetryPlan | None, name: str
) -> tuple[pa.Table, Earlier | None]:
    """A shard's rows, and for those tried again what they were."""
    return retry.read(dataset, name) if retry else (work_list.read(name), None)


def pump_limits(config: FetchConfig, site: Site) -> PumpLimits:
    """This process's share of the limits that hold over the whole run."""
    cores = os.cpu_count() or 1
    return PumpLimits(
        concurrency=config.concurrency,
        retries=config.retries,
        backoff_s=config.backoff_s,
        per_host=max(1, config.per_host // site.share),
        per_host_rate=config.per_host_rate / site.share,
        timeout_s=config.timeout_s,
        crawl_delay_times=site.share if config.crawl_delay else 0.0,
        max_bytes=config.max_bytes,
        network_wait_s=config.network_wait_s,
        decode_timeout_s=config.decode_timeout_s,
        codec_threads=max(1, min(8, cores // site.workers) + 1),
    )


def bytes_per_s(config: FetchConfig, site: Site) -> float:
    """This process's share of the bandwidth; 0 where none is set."""
    return config.max_mbps * 125_000 / site.share


def image_maker(config: FetchConfig) -> ImageMaker:
    """What a config makes of a body. Raises InputError for a blocklist that is none."""
    return ImageMaker(
        config.how,
        config.limits,
        config.encode_format,
        config.encode_quality,
        config.skip_reencode,
        config.min_bytes,
        config.extract_exif,
        config.compute_md5,
        config.compute_phash,
        config.verify_hash,
        config.verify_distance,
        read_blocklist(config.blocklist),
    )


def read_blocklist(path: str) -> frozenset[str]:
    """Hashes of a file, one a line, in lower case; nothing where no file is named."""
    if not path:
        return frozenset()
    folder, _, name = path.rpartition("/")
    lines = Folder(folder or ".").read_bytes(name).decode("utf-8", "replace").splitlines()
    hashes = {line.partition("#")[0].strip().lower() for line in lines} - {""}
    for one in hashes:
        if len(one) not in (32, 64) or set(one) - set("0123456789abcdef"):
            raise InputError(f"{path}: {one[:70]!r} is no sha256 or md5 hash in hex")
    return frozenset(hashes)


def _values(rows: pa.Table, column: str) -> list[Any]:
    if column and column in rows.column_names:
        values: list[Any] = rows.column(column).to_pylist()
        return values
    return [None] * rows.num_rows
