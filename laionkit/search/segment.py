"""One open segment: its vectors, its lists where it has some, what it knows of its rows.

Everything is memory-mapped: opening costs the same at any size.
"""

from collections.abc import Collection
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from laionkit.backends import knn
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.search import bits
from laionkit.search.arrow import as_arrow
from laionkit.search.layout import LISTS, ROWS, VECTORS, SegmentInfo, segment_file

ROW_COLUMNS = ("key", "caption", "url", "shard", "row")
_FEW = 256  # rows that are checked one by one; for more it costs less to check all of a batch once


class Rows(Protocol):
    """What is known of a segment's rows."""

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """ROW_COLUMNS of some rows, in the order given."""

    def keys(self) -> pa.ChunkedArray:
        """Every row's key, in order."""


class MappedRows:
    """Rows of an Arrow file, found by number in O(1)."""

    def __init__(self, path: str) -> None:
        """Map the file. Raises InputError where it is missing or truncated."""
        self._path = path
        self._checked: set[int] = set()  # batches
        self._keys_checked = False
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(path))
            self.batches = [
                self._reader.get_batch(i) for i in range(self._reader.num_record_batches)
            ]
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path} is not readable: run laionkit index --fresh") from error
        sizes = [batch.num_rows for batch in self.batches]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def __len__(self) -> int:
        """Count of rows."""
        return int(self._starts[-1])

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """ROW_COLUMNS of some rows, in the order given.

        Raises InputError where they are damaged.
        """
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self._starts)
        parts = []
        for i in np.flatnonzero(np.diff(cuts)).tolist():
            here = rows[order[cuts[i] : cuts[i + 1]]] - self._starts[i]
            self._check(i, here)
            parts.append(self.batches[i].take(as_arrow(here)))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.Table.from_batches(parts, self._reader.schema).take(as_arrow(back))

    def keys(self) -> pa.ChunkedArray:
        """Every row's key, in order."""
        if not self._keys_checked:
            for batch in self.batches:
                self._validate(batch["key"])
            self._keys_checked = True
        return pa.chunked_array([batch["key"] for batch in self.batches], pa.string())

    def _check(self, number: int, rows: NDArray[np.int64]) -> None:
        """Raise InputError where some rows of a batch are damaged: Arrow would read anywhere."""
        if number in self._checked:
            return
        batch = self.batches[number]
        if len(rows) <= _FEW:
            for row in rows.tolist():
                self._validate(batch.slice(row, 1))
        else:
            self._validate(batch)
            self._checked.add(number)

    def _validate(self, part: pa.RecordBatch | pa.Array) -> None:
        try:
            part.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InputError(f"{self._path} is damaged: run laionkit index --fresh") from error


class Segment:
    """A segment that can be searched. `start` is the number of its first row in the index."""

    def __init__(self, folder: Folder, info: SegmentInfo, start: int) -> None:
        """Open the files of `info`. Raises InputError where they are damaged or disagree."""
        self.info, self.start = info, start
        self.vectors = knn.FlatStore(folder.local_path(segment_file(info.name, VECTORS)))
        rows = MappedRows(str(folder.local_path(segment_file(info.name, ROWS))))
        self.rows = rows
        self.dead = _read_dead(folder, info) if info.dead_file else None
        self.lists: knn.ListStore | None = None
        counts = {"vectors": self.vectors.rows, "rows": len(rows)}
        if info.lists:
            self.lists = knn.ListStore(folder.local_path(segment_file(info.name, LISTS)))
            counts["rows in lists"] = int(self.lists.starts[-1])
        for what, count in counts.items():
            if count != info.rows:
                raise InputError(
                    f"{folder}/{segment_file(info.name, '')}: {count} {what}, and the index "
                    f"says {info.rows}: run laionkit index --fresh"
                )

    @property
    def count(self) -> int:
        """Rows of this segment, dead ones too."""
        return self.info.rows

    def rows_of_shards(self, shards: Collection[str]) -> NDArray[np.bool_]:
        """Which rows come from some shards of embeddings."""
        wanted = pa.array(sorted(shards), pa.string())
        parts = [
            pc.is_in(batch["shard"].cast(pa.string()), value_set=wanted).to_numpy(False)
            for batch in self.rows.batches
        ]
        return np.concatenate(parts)


def _read_dead(folder: Folder, info: SegmentInfo) -> knn.Bitmap:
    """The rows that are taken down. Raises InputError where they are not those that were marked."""
    dead = np.frombuffer(folder.read_bytes(info.dead_file), np.uint8)
    if len(dead) != -(-info.rows // 8) or bits.count(dead) != info.dead:
        raise InputError(
            f"{folder}/{info.dead_file} does not hold the {info.dead} rows that were taken down: "
            "run laionkit index --fresh"
        )
    return dead
