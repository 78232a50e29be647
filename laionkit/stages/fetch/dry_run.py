"""`--dry-run`: a thousand links as the real run would fetch them, and what the whole would cost.

The links are a seeded random sample of what is left to do. They go through the same guards, limits
and retries into one real shard in a temporary folder, whose bytes are measured; the dataset is
left as it is.
"""

import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt

import numpy as np
import pyarrow as pa

from laionkit.core.files import Folder
from laionkit.core.progress import StageEnded, StageStarted
from laionkit.core.runner import Outcome, Runner, Site, StageReport, Task
from laionkit.core.worklist import WorkList
from laionkit.ops.urls import host_of
from laionkit.stages.fetch.config import FetchConfig
from laionkit.stages.fetch.retry import RetryPlan
from laionkit.stages.fetch.worker import FetchWorker, Sample, read_rows

LINKS = 1000
# The sample comes of so many shards at most, drawn at random: a row group is read whole.
SHARDS = 100
SEED = 0
PROBE = "dry-run"


@dataclass(frozen=True)
class Estimate:
    """What all links would bring and take, told from a sample.

    `give_or_take` is twice the standard error of `success`, both shares of 1; `hours` are those of
    the tightest bound, `bound_by`.
    """

    links: int
    sampled: int
    success: float
    give_or_take: float
    images: int
    network_bytes: int
    disk_bytes: int
    hours: float
    bound_by: str
    workers: int
    concurrency: int

    def words(self) -> tuple[str, str]:
        """The estimate in two lines."""
        return (
            f"{100 * self.success:.1f} ± {100 * self.give_or_take:.1f} % of {self.sampled:,} "
            "sampled links gave an image; nothing was written to the dataset",
            f"all of it: about {self.images:,} images, {_size(self.network_bytes)} over the "
            f"network, {_size(self.disk_bytes)} on disk, {_duration(self.hours)} with "
            f"{self.workers} workers of {self.concurrency} requests (bound by {self.bound_by})",
        )


def dry_run(
    folder: Folder,
    config: FetchConfig,
    runner: Runner,
    tasks: Sequence[Task],
    plan: RetryPlan | None,
) -> StageReport:
    """Fetch a sample of the tasks' rows; report what became of it and what all would take."""
    links = sum(task.samples or 0 for task in tasks)
    report = StageReport(stage="fetch", dataset=folder.url, extra={"dry_run": True, "links": links})
    if not links:
        return report.model_copy(update={"notes": ("nothing is left to fetch",)})
    rows = draw(folder, tasks, plan)
    runner.progress.emit(StageStarted("fetch", 1, 0, rows.num_rows))
    started, cpu = time.monotonic(), _cpu_s()
    with tempfile.TemporaryDirectory(prefix="laionkit-dry-run-") as place:
        site = Site(part=runner.part[0], parts=runner.part[1], report=runner.progress.emit)
        with FetchWorker(folder.url, config, None, site, Sample(rows, Folder(place))) as worker:
            (outcome,) = worker.process(iter([PROBE]))
            delays = worker.pump.queue.gaps()
    seconds = time.monotonic() - started
    runner.progress.emit(StageEnded("fetch", outcome.counts, seconds))
    found = estimate(links, rows, outcome, config, runner, _cpu_s() - cpu, delays)
    return report.model_copy(
        update={
            "counts": outcome.counts,
            "seconds": round(seconds, 3),
            "notes": found.words(),
            "extra": {"dry_run": True, **asdict(found)},
        }
    )


def draw(folder: Folder, tasks: Sequence[Task], plan: RetryPlan | None) -> pa.Table:
    """A seeded random sample of the tasks' rows, in key order."""
    random = np.random.default_rng(SEED)
    chosen = random.permutation(len(tasks))[:SHARDS]
    rows = np.array([tasks[i].samples or 0 for i in sorted(chosen)])
    picked = random.permutation(int(rows.sum()))[:LINKS]
    tables = []
    with WorkList.open(folder) as work_list:
        for place, first in zip(sorted(chosen), np.cumsum(rows) - rows, strict=True):
            wanted = picked[(picked >= first) & (picked < first + (tasks[place].samples or 0))]
            if len(wanted):
                shard, _ = read_rows(folder, work_list, plan, tasks[place].shard)
                tables.append(shard.take(pa.array(np.sort(wanted - first))))
    return pa.concat_tables(tables, promote_options="default")


def estimate(
    links: int,
    rows: pa.Table,
    seen: Outcome,
    config: FetchConfig,
    runner: Runner,
    cpu_s: float,
    delays: Mapping[str, float],
) -> Estimate:
    """What all links would take, by what the sample took; `delays` are those of robots.txts."""
    count = rows.num_rows
    parts, cores = runner.part[1], os.cpu_count() or 1
    workers = runner.workers or min(cores, config.most_workers(parts))
    share, scale = seen.counts.ok / count, links / count
    bounds = dict(_bounds(rows, seen, config, workers, parts, delays))
    bounds["processor"] = cpu_s / cores
    bound_by = max(bounds, key=lambda name: bounds[name])
    return Estimate(
        links=links,
        sampled=count,
        success=round(share, 4),
        give_or_take=0.0 if count == links else round(2 * sqrt(share * (1 - share) / count), 4),
        images=round(share * links),
        network_bytes=round(seen.extra["bytes_in"] * scale),
        disk_bytes=round(sum(file.size for file in seen.files.values()) * scale),
        hours=round(bounds[bound_by] * scale / 3600, 4),
        bound_by=bound_by,
        workers=workers,
        concurrency=config.concurrency,
    )


def _bounds(
    rows: pa.Table,
    seen: Outcome,
    config: FetchConfig,
    workers: int,
    parts: int,
    delays: Mapping[str, float],
) -> Iterator[tuple[str, float]]:
    """Seconds that the sample would take where one thing alone held it back."""
    asked_s: float = seen.extra["asked_s"]
    yield "waiting for servers", asked_s / (workers * config.concurrency)
    if config.max_mbps:
        yield "max_mbps", seen.extra["bytes_in"] * 8e-6 * parts / config.max_mbps
    if "url" in rows.column_names:
        hosts = Counter(host_of(url) for url in rows.column("url").to_pylist())
        host, most = hosts.most_common(1)[0]
        at_once = config.per_host // parts
        yield f"requests at once to {host}", asked_s * most / rows.num_rows / at_once
        if config.per_host_rate:
            yield f"requests a second to {host}", most * parts / config.per_host_rate
        for host in delays.keys() & hosts:
            yield f"the crawl delay of {host}", hosts[host] * delays[host]


def _cpu_s() -> float:
    """Processor seconds of this process and of those it started that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} s"
    return f"{hours * 60:.2g} min" if hours < 1 else f"{hours:,.1f} h"
