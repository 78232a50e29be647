"""One shard under way: results as they come, images in a spool, then its three files in key order.

The order and the bytes of tar and parquet do not depend on the order of arrival. The spool is an
unlinked temporary file, so that a shard of 10,000 images needs no memory and leaves no garbage.
"""

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from laionkit.core.files import Folder, Written
from laionkit.core.places import note_places
from laionkit.core.progress import Counts
from laionkit.core.records import STATS
from laionkit.core.runner import Outcome
from laionkit.core.schemas import (
    EXTRA_FETCHED_COLUMNS,
    FETCHED_COLUMNS,
    SHARDS,
    Reason,
    Status,
)
from laionkit.core.shards import ShardWriter
from laionkit.core.tars import IMAGES_SCHEMA
from laionkit.ops.stored_image import Found
from laionkit.ops.urls import host_of
from laionkit.stages.fetch.retry import HEALED, HEALED_OF, Earlier

# Rows turned into Python objects at a time.
_BATCH_ROWS = 500
# Servers that a record names; status sums them up over shards.
WORST_HOSTS = 20
_NOBODY_ASKED = frozenset(
    {
        Reason.MISSING_URL,
        Reason.MALFORMED_URL,
        Reason.SCHEME_REFUSED,
        Reason.TAKEN_DOWN,
        Reason.SUPERSEDED,
    }
)
_LAST_CARRIED = ("caption", "url")


@dataclass(slots=True)
class _Place:
    offset: int
    size: int


@dataclass
class ShardUnderWay:
    """A shard's rows (as metadata wrote them, with `key`) and what became of each so far.

    Rows that are tried again come with what they were: of them only what healed is written.
    """

    name: str
    rows: pa.Table
    dataset: Folder
    extension: str
    extra_columns: tuple[str, ...] = ("opt_out",)
    earlier: Earlier | None = None
    started: float = field(default_factory=time.time)

    left: int = field(init=False)

    def __post_init__(self) -> None:
        """Open the spool beside the shards, or in the system's place for a remote dataset."""
        self.found: list[Found | None] = [None] * self.rows.num_rows
        self.left = self.rows.num_rows
        self._places: dict[int, _Place] = {}
        self._end = 0
        self._lock = threading.Lock()
        beside = None
        if self.dataset.is_local:
            beside = self.dataset.local_path(SHARDS)
            beside.mkdir(parents=True, exist_ok=True)
            for left in beside.glob(f".{self.name}*.tmp"):  # of a run that was killed
                left.unlink(missing_ok=True)
        self._spool = tempfile.TemporaryFile(dir=beside)  # noqa: SIM115 - closed in `close`

    def keep_image(self, index: int, found: Found) -> None:
        """Move a result's image into the spool. Any thread may call it."""
        if found.image is None:
            return
        with self._lock:
            self._places[index] = _Place(self._end, len(found.image))
            self._end += len(found.image)
            self._spool.write(found.image)
        found.image = None

    def finish_row(self, index: int, found: Found) -> bool:
        """Take a row's result; True when it was the shard's last."""
        assert self.found[index] is None, f"row {index} of {self.name} was finished twice"
        self.found[index] = found
        self.left -= 1
        return not self.left

    def write(self) -> Outcome:
        """Write tar, parquet and statistics, and return what the record needs."""
        again = self.earlier is not None
        kept = [i for i in range(self.rows.num_rows) if not again or self._is_ok(i)]
        rows = self.rows.take(pa.array(kept, pa.int64())) if again else self.rows
        table = self._table(rows, [self._result(i) for i in kept])
        tar, places = self._write_tar(table, kept)
        counts = self._counts(kept)
        files = {
            "tar": tar,
            "places": places,
            "table": self.dataset.write_table(f"{SHARDS}/{self.name}.parquet", table),
            STATS: self._write_stats(counts),
        }
        results = [self._result(i) for i in range(self.rows.num_rows)]
        extra: dict[str, Any] = {
            "bytes_in": sum(found.bytes_in for found in results),
            "asked_s": round(sum(found.asked_s for found in results), 3),
            "worst_hosts": self._worst_hosts(),
        }
        if self.earlier is not None:
            was = Counter(self.earlier.reasons[i] for i in kept)
            of = Counter(self.earlier.shards[i] for i in kept)
            still = Counter(str(found.reason) for found in results if found.reason is not None)
            extra |= {"tried": self.rows.num_rows, HEALED: len(kept), HEALED_OF: dict(of)}
            extra |= {"healed_from": dict(was), "still_lost": dict(still)}
        seconds = time.time() - self.started
        return Outcome(self.name, counts, files, seconds=seconds, extra=extra)

    def close(self) -> None:
        """Drop the spool."""
        self._spool.close()

    def _result(self, index: int) -> Found:
        found = self.found[index]
        assert found is not None, f"row {index} of {self.name} has no result"
        return found

    def _is_ok(self, index: int) -> bool:
        return self._result(index).reason is None

    def _worst_hosts(self) -> dict[str, int]:
        """The servers at which most links were lost, with how many."""
        if "url" not in self.rows.column_names:
            return {}
        urls = self.rows.column("url")
        lost = Counter(
            host_of(urls[i].as_py())
            for i in range(self.rows.num_rows)
            if (reason := self._result(i).reason) is not None and reason not in _NOBODY_ASKED
        )
        return {host: n for host, n in lost.most_common(WORST_HOSTS) if host}

    def _counts(self, kept: list[int]) -> Counts:
        reasons = Counter(str(r) for i in kept if (r := self._result(i).reason) is not None)
        return Counts.of(len(kept) - reasons.total(), reasons)

    def _table(self, rows: pa.Table, results: list[Found]) -> pa.Table:
        names = [n for n in rows.column_names if n != "key" and n not in _LAST_CARRIED]
        names += [n for n in _LAST_CARRIED if n in rows.column_names]
        columns = {name: rows.column(name) for name in names}
        types = {**FETCHED_COLUMNS, **{n: EXTRA_FETCHED_COLUMNS[n] for n in self.extra_columns}}
        for name, kind in types.items():
            columns[name] = (
                rows.column("key")
                if name == "key"
                else _column([_value(found, name) for found in results], kind)
            )
        return pa.table(columns)

    def _write_tar(self, table: pa.Table, kept: list[int]) -> tuple[Written, Written]:
        """Write the tar, and the note of where its pictures lie."""
        noted = []
        with (
            self.dataset.create(f"{SHARDS}/{self.name}.tar") as file,
            ShardWriter(file) as tar,
        ):
            for position, row in enumerate(_python_rows(table)):
                place = self._places.get(kept[position])
                if place is None or not self._is_ok(kept[position]):
                    continue
                self._spool.seek(place.offset)
                members = {
                    self.extension: self._spool.read(place.size),
                    "json": to_json(row),
                }
                if "caption" in row:
                    members["txt"] = (row["caption"] or "").encode()
                offset = tar.add(row["key"], members)
                noted.append((row["key"], self.extension, offset, place.size))
        written = Written(f"{SHARDS}/{self.name}.tar", file.size, file.digest.hexdigest())
        return written, note_places(self.dataset, self.name, _places(noted))

    def _write_stats(self, counts: Counts) -> Written:
        end = time.time()
        statuses = Counter[Status]()
        for reason, count in counts.reasons.items():
            statuses[Reason(reason).status] += count
        stats = {
            "count": counts.seen,
            "successes": counts.ok,
            "failed_to_download": statuses[Status.FAILED_TO_DOWNLOAD],
            "failed_to_resize": statuses[Status.FAILED_TO_RESIZE],
            "duration": end - self.started,
            "start_time": self.started,
            "end_time": end,
            "status_dict": {"success": counts.ok, **counts.reasons},
        }
        return self.dataset.write_json(f"{SHARDS}/{self.name}_stats.json", stats)


def _column(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    """Texts or whole numbers as a column.

    `pa.array` would load pandas to see whether a list is a series: 0.3 s and 40 MB a process.
    """
    builder = pa.lib.StringBuilder()
    builder.append_values([None if value is None else str(value) for value in values])
    return builder.finish().cast(kind)


def _places(noted: list[tuple[str, str, int, int]]) -> pa.Table:
    columns = list(zip(*noted, strict=True)) or [()] * len(IMAGES_SCHEMA)
    arrays = [_column(values, f.type) for values, f in zip(columns, IMAGES_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=IMAGES_SCHEMA)


def _value(found: Found, name: str) -> Any:
    if name == "status":
        return str(found.reason.status if found.reason else Status.SUCCESS)
    if name == "reason":
        return str(found.reason) if found.reason else None
    if name == "error_message":
        # Servers' words may hold bytes that are no text, and then no parquet could be written.
        return found.message and found.message.encode(errors="replace").decode()
    return getattr(found, name)


def _python_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        yield from batch.to_pylist()


def to_json(row: dict[str, Any]) -> bytes:
    """A row as KEY.json; what JSON cannot say (NaN, bytes, dates) becomes null or text."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError):
        return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, str | int | bool) or value is None:
        return value
    return value.hex() if isinstance(value, bytes) else str(value)
