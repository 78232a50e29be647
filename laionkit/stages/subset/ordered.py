"""The rows that stay, in the order of the export, however many there are.

The engine sorts what fits its memory. More is dealt into buckets on disk first, each a range of
the order, and one bucket is sorted at a time: joined and sorted as a whole, wide rows in a random
order need more memory than there is (1 GiB does not do for ten million).
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from laionkit.core.shard_scan import NEEDS_JOIN, SHARD, ShardScan
from laionkit.core.table import DatasetTable
from laionkit.core.views import number
from laionkit.ops.predicates import quote_name, quote_text
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.layout import json_sql
from laionkit.stages.subset.pictures import PLACE_COLUMNS
from laionkit.stages.subset.selection import Selection

# Rows sorted at a time for each MiB of the engine's: they take 2 kB with their JSON.
ROWS_PER_MB = 128
MAX_BUCKETS = 256
_DEALT_ROWS = 100_000
_ORDER, _BUCKET = "laionkit_order", "laionkit_bucket"
# One of so many keys is looked at to cut the order into ranges.
_SAMPLE = 8


def ordered_rows(selection: Selection, config: SubsetConfig, rows: int) -> Iterator[Any]:
    """Arrow batches of about `rows` rows of what stays, with what a sample needs beside.

    Its columns are the dataset's, PLACE_COLUMNS where pictures are wanted, laionkit_txt and
    laionkit_json.
    """
    table, most = selection.table, ROWS_PER_MB * config.memory_mb
    kept, order = selection.counts().ok, _order_sql(config)
    if kept <= most:
        source = f"({table.select()}) s {_join_sql(config)}"
        sql = f"SELECT s.*{_places_sql(config)}{_more_sql(table, config)} FROM {source}"
        yield from table.batches(f"{sql} ORDER BY {order}, s.key", rows)
        return
    sql = f"SELECT s.* EXCLUDE ({_ORDER}, {_BUCKET}){_more_sql(table, config)} FROM laionkit_rows s"
    with _Buckets(min(MAX_BUCKETS, -(-kept // most))) as buckets:
        _deal(selection, config, buckets)
        for part in buckets.tables():
            yield from table.batches(f"{sql} ORDER BY {_ORDER}, key", rows, over=part)


def _order_sql(config: SubsetConfig) -> str:
    """SQL of what rows are sorted by; equal ones by key."""
    return "j.key" if config.shuffle_seed is None else f"md5('{config.shuffle_seed}:' || j.key)"


def _places_sql(config: SubsetConfig) -> str:
    return "".join(f", p.{name}" for name in PLACE_COLUMNS) if config.as_ != "parquet" else ""


def _join_sql(config: SubsetConfig, first: str = "", last: str = "") -> str:
    """SQL that leaves of rows ``s`` those that stay; of shards from `first` to `last` if given."""
    which = f"shard BETWEEN {quote_text(first)} AND {quote_text(last)}" if first else "true"
    joined = f"JOIN (SELECT key FROM judged WHERE code = 0 AND {which}) j ON j.key = s.key"
    if config.as_ != "parquet":
        joined += f" JOIN (FROM places WHERE {which}) p ON p.key = s.key"
    return joined


def _more_sql(table: DatasetTable, config: SubsetConfig) -> str:
    """SQL of a sample's caption and JSON."""
    caption = f"s.{quote_name(config.caption)}" if config.caption in table.columns else "NULL"
    return (
        f", coalesce({caption}::VARCHAR, '') AS laionkit_txt, "
        f"{json_sql(table.columns)} AS laionkit_json"
    )


def _deal(selection: Selection, config: SubsetConfig, buckets: "_Buckets") -> None:
    """Deal what stays into buckets, shard by shard where the dataset's files allow it."""
    table = selection.table
    bucket = _bucket_sql(table, config, buckets.count)
    scan = table.shard_scan(list(table.columns), forgotten=True)  # no verdict is on these
    if scan is not None and SHARD not in scan.columns:
        with contextlib.suppress(*NEEDS_JOIN):
            _deal_shards(table, config, bucket, scan, buckets)
            return
        buckets.clear()
    for batch in table.batches(_dealt_sql(config, bucket, f"({table.select()})")):
        buckets.add(pa.Table.from_batches([batch]))


def _bucket_sql(table: DatasetTable, config: SubsetConfig, count: int) -> str:
    """SQL of the bucket of a row: ranges of the order that hold about as many rows each."""
    order = _order_sql(config)
    (cuts,) = table.row(
        f"SELECT quantile_disc({order}, {[i / count for i in range(1, count)]}) "
        f"FROM judged j WHERE code = 0 AND hash(key) % {_SAMPLE} = 0"
    )
    whens = [f"WHEN {order} < {quote_text(cut)} THEN {i}" for i, cut in enumerate(cuts or [])]
    return f"CASE {' '.join(whens)} ELSE {len(whens)} END" if whens else "0"


def _deal_shards(
    table: DatasetTable,
    config: SubsetConfig,
    bucket: str,
    scan: ShardScan,
    buckets: "_Buckets",
) -> None:
    """Deal whole shards, each few looked up in what is known of those few."""
    columns = [f"{number(n, kind)} AS {quote_name(n)}" for n, kind in table.columns.items()]
    source = f"(SELECT {', '.join(columns)} FROM laionkit_rows)"
    for rows in _gather(scan.batches()):
        shards = rows.column(SHARD)
        ends = shards[0].as_py(), shards[len(rows) - 1].as_py()
        buckets.add(table.arrow_over(rows, _dealt_sql(config, bucket, source, *ends)))


def _dealt_sql(config: SubsetConfig, bucket: str, source: str, *ends: str) -> str:
    """SQL of those rows of `source` that stay, each with its order and its bucket."""
    order = f"{_order_sql(config)} AS {_ORDER}, {bucket} AS {_BUCKET}"
    return f"SELECT s.*{_places_sql(config)}, {order} FROM {source} s {_join_sql(config, *ends)}"


def _gather(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches put together to tables of so many rows that a query on each is worth it."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= _DEALT_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


class _Buckets:
    """Rows on disk, in one file a bucket, which go at the end."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> "_Buckets":
        self._folder = tempfile.TemporaryDirectory(prefix="laionkit-")
        self._writers: dict[int, Any] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self._folder.cleanup()

    def add(self, rows: pa.Table) -> None:
        """Add rows, each to its bucket."""
        bucket_N = rows.column(_BUCKET).to_numpy()
        sorted_N = np.argsort(bucket_N, kind="stable")
        rows, bucket_N = rows.take(pa.array(sorted_N)), bucket_N[sorted_N]
        edges = np.searchsorted(bucket_N, np.arange(self.count + 1))
        for bucket in np.unique(bucket_N).tolist():
            start, end = edges[bucket : bucket + 2].tolist()
            if bucket not in self._writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                path = str(self._path(bucket))
                self._writers[bucket] = pa.ipc.new_stream(path, rows.schema, options=options)
            self._writers[bucket].write_table(rows.slice(start, end - start))

    def tables(self) -> Iterator[pa.Table]:
        """The rows of each bucket in turn, which is deleted before the next."""
        written = sorted(self._writers)
        self.clear()
        for bucket in written:
            with pa.OSFile(str(self._path(bucket))) as file, pa.ipc.open_stream(file) as rows:
                yield rows.read_all()
            self._path(bucket).unlink()

    def clear(self) -> None:
        """Write no more into the files that are there; others take their place."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket}.arrow"
