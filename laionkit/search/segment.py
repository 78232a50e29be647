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
from laionkit.search.arrow import as_arrow
from laionkit.search.layout import LISTS, ROWS, VECTORS, SegmentInfo, segment_file

ROW_COLUMNS = ("key", "caption", "url", "shard", "row")


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
        """ROW_COLUMNS of some rows, in the order given."""
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self._starts)
        parts = [
            self.batches[i].take(as_arrow(rows[order[cuts[i] : cuts[i + 1]]] - self._starts[i]))
            for i in np.flatnonzero(np.diff(cuts))
        ]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.Table.from_batches(parts, self._reader.schema).take(as_arrow(back))

    def keys(self) -> pa.ChunkedArray:
        """Every row's key, in order."""
        return pa.chunked_array([batch["key"] for batch in self.batches], pa.string())


class Segment:
    """A segment that can be searched. `start` is the number of its first row in the index."""

    def __init__(self, folder: Folder, info: SegmentInfo, start: int) -> None:
        """Open the files of `info`. Raises InputError where they are damaged or disagree."""
        self.info, self.start = info, start
        self.vectors = knn.FlatStore(folder.local_path(segment_file(info.name, VECTORS)))
        rows = MappedRows(str(folder.local_path(segment_file(info.name, ROWS))))
        self.rows = rows
        self.dead: knn.Bitmap | None = None
        if info.dead:
            self.dead = np.frombuffer(folder.read_bytes(info.dead_file), np.uint8)
        self.lists: knn.ListStore | None = None
        if info.lists:
            self.lists = knn.ListStore(folder.local_path(segment_file(info.name, LISTS)))
        for what, count in (("vectors", self.vectors.rows), ("rows", len(rows))):
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
