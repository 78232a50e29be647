"""fetch: every image that can be had and none that should not be, in img2dataset's shards.

Reads the work list, writes ``shards/SHARD.tar``, ``.parquet`` (one row for every link, with why it
failed) and ``_stats.json``.
"""

import functools
import logging
import os
from contextlib import AbstractContextManager

from laionkit.core.errors import ConfigError, did_you_mean
from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner, Site, StageReport, Task, Worker
from laionkit.core.schemas import SHARD_RECORDS, Reason
from laionkit.core.worklist import WorkList
from laionkit.stages.fetch.config import FetchConfig
from laionkit.stages.fetch.retry import RetryPlan, drop_empty, plan_retry

__all__ = ["FetchConfig", "fetch"]


def fetch(
    dataset: str,
    config: FetchConfig = FetchConfig(),
    *,
    runner: Runner = Runner(),
) -> StageReport:
    """Fetch every link of a dataset's work list, or, with `retry`, those that may heal."""
    folder = Folder(dataset)
    records = StageRecords(folder, SHARD_RECORDS)
    check(config)
    check_share(config, runner)
    with WorkList.open(folder) as work_list:
        check_columns(config, work_list.columns)
        if not config.dry_run:
            config = runner.begin(records, config)
        if not config.contact and not config.allow_private and "url" in work_list.columns:
            runner.note("fetch", _NO_CONTACT, logging.WARNING)
        if config.engine == "img2dataset":
            runner.note("fetch", LIMITS_NOTE, logging.WARNING)
        tasks = [
            Task(name, {"metadata": work_list.content(name)}, work_list.rows(name))
            for name in work_list.shards()
        ]
        plan = None
        if config.retry:
            plan = plan_retry(folder, work_list.scheme, work_list.shards(), runner.is_mine)
            tasks = plan.tasks()
    if config.dry_run:
        from laionkit.stages.fetch.dry_run import dry_run

        left = [
            task
            for task in tasks
            if runner.is_mine(task.shard) and not records.finished(task.shard, task.inputs)
        ]
        return _after(folder, None, dry_run(folder, config, runner, left, plan), runner)
    opener = functools.partial(_open_worker, dataset, config, plan)
    workers = min(os.cpu_count() or 1, config.most_workers(runner.part[1]))
    report = runner.run(records, config, tasks, opener, workers=workers)
    return _after(folder, plan, report, runner)


_NO_CONTACT = (
    "no contact is given, so a site's owner cannot reach you and may block you: "
    "add --contact with a URL or an e-mail address"
)


LIMITS_NOTE = (
    "img2dataset honours X-Robots-Tag alone (no robots.txt, no TDM header), has no limits per host "
    "and checks no address that a name leads to"
)
# Settings that img2dataset has no counterpart of, at the value that asks for nothing.
ONLY_OURS: dict[str, object] = {
    "compute_md5": False,
    "compute_phash": False,
    "verify_hash": "no",
    "blocklist": "",
    "per_host_rate": 0.0,
    "max_mbps": 0.0,
    "min_bytes": 0,
    "resolver": "",
    "dry_run": False,
}


def _open_worker(
    dataset: str, config: FetchConfig, plan: RetryPlan | None, site: Site
) -> AbstractContextManager[Worker]:
    worker: AbstractContextManager[Worker]
    if config.engine == "img2dataset":
        from laionkit.stages.fetch.peer import PeerWorker

        worker = PeerWorker(dataset, config, plan, site)
    else:
        from laionkit.stages.fetch.worker import FetchWorker

        worker = FetchWorker(dataset, config, plan, site)
    return worker


def check(config: FetchConfig) -> None:
    """Raise ConfigError where settings contradict one another."""
    if config.encode_format == "png" and config.encode_quality > 9:
        raise ConfigError(
            f"encode_quality={config.encode_quality} with encode_format=png: give the compression, "
            "0 to 9, such as --encode-quality 6"
        )
    if config.encode_format != "png" and config.encode_quality < 1:
        raise ConfigError("encode_quality=0: jpg and webp take 1 to 100")
    if config.engine == "img2dataset":
        for name, nothing in ONLY_OURS.items():
            if (value := getattr(config, name)) != nothing:
                raise ConfigError(
                    f"{name}={value!r} needs --engine laionkit: img2dataset has nothing like it"
                )
    folder, _, name = config.blocklist.rpartition("/")
    if name and not Folder(folder or ".").exists(name):
        raise ConfigError(f"blocklist={config.blocklist}: there is no such file")
    if config.resolver:
        from laionkit.backends.http.dns import split_server

        split_server(config.resolver)
    if not config.contact.isprintable():
        raise ConfigError(
            f"contact={config.contact!r}: give a URL or an e-mail address in one line"
        )
    if config.verify_column and config.verify_hash == "no":
        raise ConfigError(
            f"verify_column={config.verify_column!r} without verify_hash: add --verify-hash sha256"
        )


def check_share(config: FetchConfig, runner: Runner) -> None:
    """Raise ConfigError where so many processes would ask a host for more than `per_host`."""
    workers, parts = runner.workers or 1, runner.part[1]
    if workers > (most := config.most_workers(parts)):
        where = f" on each of {parts} parts" if parts > 1 else ""
        fewer = f"--workers {most} or " if most else ""
        raise ConfigError(
            f"per_host={config.per_host} cannot be shared by {workers} workers{where}, each of "
            f"which asks for one picture at a time at least: {fewer}a larger --per-host"
        )


def check_columns(config: FetchConfig, there: frozenset[str]) -> None:
    """Raise ConfigError where a setting names a column that the work list does not have."""
    hashed = config.verify_hash
    asked = {
        "bbox_column": [config.bbox_column] if config.bbox_column else [],
        "verify_column": [config.verify_column] if config.verify_column else [],
        "verify_hash": [] if config.verify_column or hashed == "no" else [f"src_{hashed}", hashed],
    }
    for name, columns in asked.items():
        if columns and not there.intersection(columns):
            hint = did_you_mean(columns[0], there)
            raise ConfigError(
                f"{name}={getattr(config, name)}: the work list has no column "
                f"{' or '.join(columns)}{hint}; it has {', '.join(sorted(there))}"
            )


def _after(
    folder: Folder, plan: RetryPlan | None, report: StageReport, runner: Runner
) -> StageReport:
    notes = []
    refused = report.counts.reasons.get(str(Reason.ADDRESS_REFUSED), 0)
    if refused:
        again = "" if report.extra.get("dry_run") else " --fresh --yes"
        notes.append(
            f"{refused} links lead to private addresses, which are refused: if they are your own "
            f"servers, fetch again with --allow-private{again}"
        )
    if plan is not None:
        tried = drop_empty(folder, plan)
        notes.append(f"{tried.ok} of {tried.seen} links tried again healed, into new shards")
        report = report.model_copy(update={"counts": tried})
    for note in notes:
        runner.note("fetch", note)
    return report.model_copy(update={"notes": (*report.notes, *notes)})
