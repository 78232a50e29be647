"""The work list: ``metadata/part-*.parquet``, one row a link or picture, one row group a shard.

Each part says in its arrow schema's metadata how keys are spelt and which shard its first row
group is (``laionkit.shard_size``, ``laionkit.shard_digits``, ``laionkit.first_shard``), so that a
shard is read by one range of one file. Only parts that a commit record names are read.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.keys import KeyScheme
from laionkit.core.records import ShardRecord, StageRecords
from laionkit.core.schemas import METADATA

PART_ROLE = "part"
SHARD_SIZE = b"laionkit.shard_size"
SHARD_DIGITS = b"laionkit.shard_digits"
FIRST_SHARD = b"laionkit.first_shard"
_FOOTER_READERS = 16


@dataclass(frozen=True)
class _Place:
    """Where a shard's rows lie: a part's path, the row group, its rows, the part's sha256."""

    path: str
    group: int
    rows: int
    sha256: str


class WorkList:
    """A dataset's links, shard by shard. Reading is safe from several threads."""

    def __init__(
        self,
        dataset: Folder,
        scheme: KeyScheme,
        places: dict[str, _Place],
        columns: frozenset[str],
    ) -> None:
        """Hold what `open` found; `columns` are those of all parts."""
        self.dataset, self.scheme, self._places, self.columns = dataset, scheme, places, columns
        self._lock = threading.Lock()
        self._open: tuple[str, BinaryIO, pq.ParquetFile] | None = None

    @classmethod
    def open(cls, dataset: Folder) -> "WorkList":
        """Find every shard of the work list. Raises InputError where there is none."""
        records = list(StageRecords(dataset, METADATA).all())
        if not records:
            raise InputError(f"{dataset} has no work list: run laionkit metadata SOURCE {dataset}")
        require_whole(dataset, records)
        with ThreadPoolExecutor(_FOOTER_READERS) as pool:
            found = list(pool.map(lambda record: _read_part(dataset, record), records))
        scheme = found[0][0]
        places: dict[str, _Place] = {}
        for _, first_shard, part, _ in found:
            for i, place in enumerate(part):
                places[scheme.shard_name(first_shard + i)] = place
        return cls(dataset, scheme, places, frozenset().union(*(names for *_, names in found)))

    def shards(self) -> list[str]:
        """Names of all shards, in order."""
        return sorted(self._places)

    def rows(self, shard: str) -> int:
        """How many links a shard has."""
        return self._place(shard).rows

    def content(self, shard: str) -> str:
        """What names a shard's rows: the part's sha256 and the row group in it."""
        place = self._place(shard)
        return f"{place.sha256[:32]}:{place.group}"

    def total(self) -> int:
        """How many links there are in all."""
        return sum(place.rows for place in self._places.values())

    def read(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """A shard's rows in key order; `columns` that are not there are left out."""
        place = self._place(shard)
        with self._lock:
            if self._open is None or self._open[0] != place.path:
                self.close()
                file = self.dataset.open(place.path)
                self._open = (place.path, file, pq.ParquetFile(file))
            parquet = self._open[2]
            if columns is not None:
                there = set(parquet.schema_arrow.names)
                columns = [name for name in columns if name in there]
            return parquet.read_row_group(place.group, columns=columns, use_threads=False)

    def close(self) -> None:
        """Close the part that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __enter__(self) -> "WorkList":
        """Use as a context: the open part is closed at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the part that is open."""
        self.close()

    def _place(self, shard: str) -> _Place:
        if shard not in self._places:
            raise InputError(f"{self.dataset} has no shard {shard} in its work list")
        return self._places[shard]


def require_whole(dataset: Folder, records: list[ShardRecord]) -> None:
    """Refuse a work list whose last batch was cut off while its records were being written."""
    if unfinished_batches(records):
        raise InputError(f"{dataset}/metadata was cut off: run the same laionkit metadata again")


def unfinished_batches(records: list[ShardRecord]) -> list[ShardRecord]:
    """Records of batches that lack one of their parts. What says nothing of batches is whole."""
    there: dict[int, int] = {}
    for record in records:
        batch = record.extra.get("batch", -1)
        there[batch] = there.get(batch, 0) + 1
    return [
        record
        for record in records
        if "batch" in record.extra and there[record.extra["batch"]] != record.extra["parts"]
    ]


def _read_part(
    dataset: Folder, record: ShardRecord
) -> tuple[KeyScheme, int, list[_Place], list[str]]:
    if PART_ROLE not in record.files:
        raise InputError(f"{dataset}/.laionkit/{METADATA}/{record.shard}.json names no part file")
    entry = record.files[PART_ROLE]
    with dataset.open(entry.path) as file:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise InputError(f"{dataset.at(entry.path)} is not readable: {error}") from error
        said = parquet.schema_arrow.metadata or {}
        if not {SHARD_SIZE, SHARD_DIGITS, FIRST_SHARD} <= set(said):
            raise InputError(f"{dataset.at(entry.path)} is no part of a laionkit work list")
        scheme = KeyScheme(int(said[SHARD_SIZE]), int(said[SHARD_DIGITS]))
        groups = [
            _Place(entry.path, i, parquet.metadata.row_group(i).num_rows, entry.sha256)
            for i in range(parquet.num_row_groups)
        ]
    return scheme, int(said[FIRST_SHARD]), groups, parquet.schema_arrow.names
