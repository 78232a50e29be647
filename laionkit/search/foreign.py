"""A folder that clip-retrieval or autofaiss wrote, opened as it is: image.index and metadata/."""

from functools import lru_cache
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laionkit.backends.knn import Bitmap, ListStore
from laionkit.backends.knn_foreign import ForeignStore
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.search.layout import METADATA, SegmentInfo
from laionkit.search.segment import Rows, Segment
from laionkit.search.view import IMAGE_INDEX

_KEYS = ("key", "image_path")
_KEPT_GROUPS = 64


class ForeignSegment:
    """The whole folder as one segment, searched by its own faiss index."""

    def __init__(self, folder: Folder) -> None:
        """Open image.index and metadata/. Raises InputError where they do not agree."""
        self.start = 0
        self.dead: Bitmap | None = None
        self.lists: ListStore | None = None
        self.vectors = ForeignStore(folder.local_path(IMAGE_INDEX))
        self.metadata = ParquetRows(folder)
        self.rows: Rows = self.metadata
        self.info = SegmentInfo(name=IMAGE_INDEX, rows=self.vectors.rows)
        if len(self.metadata) != self.vectors.rows:
            raise InputError(
                f"{folder}: image.index holds {self.vectors.rows} vectors and metadata/ "
                f"{len(self.metadata)} rows: they must agree"
            )

    @property
    def count(self) -> int:
        """Rows of this segment."""
        return self.info.rows


AnySegment = Segment | ForeignSegment


class ParquetRows:
    """Rows of metadata/*.parquet in name order; row groups are read as they are asked for."""

    def __init__(self, folder: Folder) -> None:
        """Read the footers. Raises InputError where there are none or they name no picture."""
        self.paths = [
            str(folder.local_path(f"{METADATA}/{name}"))
            for name in folder.names(METADATA, ".parquet")
        ]
        if not self.paths:
            raise InputError(f"{folder} has an image.index and no metadata/*.parquet beside it")
        try:
            self._files = [pq.ParquetFile(path, memory_map=True) for path in self.paths]
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{folder}/{METADATA} is not readable parquet: {error}") from error
        self._groups = [
            (file, group) for file in self._files for group in range(file.num_row_groups)
        ]
        sizes = (file.metadata.row_group(group).num_rows for file, group in self._groups)
        self._starts = np.array(list(accumulate(sizes, initial=0)), np.int64)
        self.names = list(dict.fromkeys(n for file in self._files for n in file.schema_arrow.names))
        found = next((name for name in _KEYS if name in self.names), None)
        if found is None:
            raise InputError(f"{folder}/{METADATA} has no column {' or '.join(_KEYS)}")
        self.key = found
        self._group = lru_cache(_KEPT_GROUPS)(self._read_group)

    def __len__(self) -> int:
        """Count of rows."""
        return int(self._starts[-1])

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """ROW_COLUMNS of some rows, in the order given."""
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self._starts)
        parts = [self._group(0).slice(0, 0)] if len(self._groups) else []
        for number in np.flatnonzero(np.diff(cuts)):
            here = rows[order[cuts[number] : cuts[number + 1]]] - self._starts[number]
            parts.append(self._group(int(number)).take(here))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts).take(back)

    def _read_group(self, number: int) -> pa.Table:
        file, group = self._groups[number]
        there = set(file.schema_arrow.names)
        wanted = [name for name in (self.key, "caption", "url") if name in there]
        table = file.read_row_group(group, columns=wanted)
        nothing = pa.nulls(len(table), pa.string())
        columns = {
            ours: table[name].cast(pa.string()) if name in there else nothing
            for ours, name in (("key", self.key), ("caption", "caption"), ("url", "url"))
        }
        first = int(self._starts[number])
        columns["shard"] = nothing
        columns["row"] = pa.array(np.arange(first, first + len(table), dtype=np.int32))
        return pa.table(columns)

    def keys(self) -> pa.ChunkedArray:
        """Every row's key, in order."""
        parts = [file.read(columns=[self.key])[self.key].cast(pa.string()) for file in self._files]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())
