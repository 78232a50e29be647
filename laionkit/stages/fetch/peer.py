"""`--engine img2dataset`: the same contract, made by the real package, shard by shard."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from laionkit.backends.img2dataset import PeerRow, reason_for, run_img2dataset
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.runner import Outcome, Site
from laionkit.core.worklist import WorkList
from laionkit.ops.stored_image import Found
from laionkit.stages.fetch.agent import AGENT_TOKEN
from laionkit.stages.fetch.config import FetchConfig
from laionkit.stages.fetch.hidden import Hidden
from laionkit.stages.fetch.job import Job, make_job
from laionkit.stages.fetch.retry import Earlier, RetryPlan
from laionkit.stages.fetch.shard import ShardUnderWay
from laionkit.stages.fetch.worker import read_rows


class PeerWorker:
    """Fetches shards with img2dataset, one after the other."""

    def __init__(
        self, dataset: str, config: FetchConfig, retry: RetryPlan | None, site: Site
    ) -> None:
        """Open the work list."""
        self.dataset, self.config, self.retry = Folder(dataset), config, retry
        self.work_list = WorkList.open(self.dataset)
        self.hidden = Hidden(self.dataset)

    def __enter__(self) -> "PeerWorker":
        """Nothing is costly here."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the work list."""
        self.work_list.close()

    def process(self, shards: Iterator[str]) -> Iterator[Outcome]:
        """Run img2dataset on each shard's links and write what it made as our shard."""
        for name in shards:
            rows, earlier = read_rows(self.dataset, self.work_list, self.retry, name)
            if "url" not in rows.column_names:
                raise InputError(f"{self.dataset}: img2dataset needs links; these are files")
            yield self._shard(name, rows, earlier)

    def _shard(self, name: str, rows: pa.Table, earlier: Earlier | None) -> Outcome:
        under_way = ShardUnderWay(
            name,
            rows,
            self.dataset,
            self.config.encode_format,
            earlier=earlier,
        )
        asked, hidden = [], self.hidden.of(rows)
        for index, url in enumerate(rows.column("url").to_pylist()):
            job = hidden.get(index) or make_job(
                under_way, index, url, None, self.config.allow_private
            )
            if isinstance(job, Job):
                asked.append(index)
            else:
                under_way.finish_row(index, job)
        columns = ["url", *([self.config.bbox_column] if self.config.bbox_column else [])]
        links = rows.select(columns).take(pa.array(asked, pa.int64()))
        with tempfile.TemporaryDirectory(prefix="laionkit-img2dataset-") as folder:
            made = run_img2dataset(links, Path(folder), self._settings()) if asked else []
        for index, peer in zip(asked, made, strict=True):
            found = as_found(peer)
            under_way.keep_image(index, found)
            under_way.finish_row(index, found)
        try:
            return under_way.write()
        finally:
            under_way.close()

    def _settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "image_size": config.image_size,
            "resize_mode": config.resize_mode,
            "resize_only_if_bigger": config.resize_only_if_bigger,
            "upscale_interpolation": config.upscale_interpolation,
            "downscale_interpolation": config.downscale_interpolation,
            "encode_format": config.encode_format,
            "encode_quality": config.encode_quality,
            "skip_reencode": config.skip_reencode,
            "min_image_size": config.min_image_size,
            "max_image_area": config.limits.max_pixels,
            "max_aspect_ratio": config.max_aspect_ratio or 1e9,
            "extract_exif": config.extract_exif,
            "bbox_col": config.bbox_column or None,
            "thread_count": config.concurrency,
            "timeout": max(1, round(config.timeout_s)),
            "retries": config.retries,
            "user_agent_token": AGENT_TOKEN,
            "disallowed_header_directives": (
                list(config.opt_out_directives) if config.x_robots_tag else []
            ),
        }


def as_found(peer: PeerRow) -> Found:
    """A row of img2dataset in our terms."""
    reason, row = reason_for(peer.row), peer.row
    if reason is not None:
        return Found(reason, row["error_message"])
    return Found(
        width=row["width"],
        height=row["height"],
        original_width=row["original_width"],
        original_height=row["original_height"],
        exif=row.get("exif"),
        sha256=row["sha256"],
        image=peer.image,
    )
