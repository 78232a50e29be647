"""One pass over a dataset shard by shard, each score file laid beside its shard's table.

Joining all keys with all keys is most of what a pass over ten million rows costs. A score file
holds keys of its own shard alone, mostly the same ones in the same order: each shard's keys are
compared, looked up where they differ, and where a score finds no row the pass is given up.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laionkit.core.engine import one_line
from laionkit.core.errors import InputError
from laionkit.core.files import Folder

READERS = 4
FOOTER_READERS = 8
SHARD = "shard"
# Few values in many rows: kept as the dictionary they are stored as.
_FEW_VALUES = ("status", "reason")


class Misaligned(Exception):
    """A score file holds keys of another shard than its name says."""


# What a join copes with and laying side by side does not.
NEEDS_JOIN = (Misaligned, pa.ArrowInvalid, pa.ArrowNotImplementedError)


@dataclass
class ShardScan:
    """A pass over the shards of `tables`, (shard, path).

    `columns` maps each column to the files' own name for it, `scores` each score column to its
    files by shard, `schema` names and types what comes out. `failure` is what stopped the pass,
    Misaligned among others: what came out until then is void.
    """

    folder: Folder
    tables: Sequence[tuple[str, str]]
    key: str
    columns: Mapping[str, str]
    scores: Mapping[str, Mapping[str, str]]
    schema: pa.Schema
    failure: Exception | None = None

    def __post_init__(self) -> None:
        """Hold columns of few values as dictionaries."""
        few = pa.dictionary(pa.int32(), pa.string())
        names = {*_FEW_VALUES, *({SHARD} - {*self.columns})}
        self.schema = pa.schema(
            [f.with_type(few) if f.name in names and f.type == pa.string() else f
             for f in self.schema]
        )  # fmt: skip

    def reader(self) -> pa.RecordBatchReader:
        """The same for an engine that reads arrow."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    def batches(self) -> Iterator[pa.RecordBatch]:
        """One record batch a shard, in order, read a few shards ahead."""
        waiting: deque[Future[pa.RecordBatch]] = deque()
        with ThreadPoolExecutor(READERS) as pool:
            try:
                for shard, path in self.tables:
                    waiting.append(pool.submit(self._read, shard, path))
                    if len(waiting) > READERS:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except Exception as error:
                self.failure = error  # the engine that pulls tells no more than its text
                raise
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, shard: str, path: str) -> pa.RecordBatch:
        few = [self.columns[name] for name in _FEW_VALUES if name in self.columns]
        with _parquet(self.folder, path, few) as file:
            wanted = {*self.columns.values(), *([self.key] if self.scores else [])}
            there = [name for name in file.schema_arrow.names if name in wanted]
            table = file.read(columns=there, use_threads=False)
        arrays = [self._column(field, shard, table) for field in self.schema]
        return pa.record_batch(arrays, schema=self.schema)

    def _column(self, field: pa.Field, shard: str, table: pa.Table) -> pa.Array:
        if field.name in self.scores:
            path = self.scores[field.name].get(shard)
            found = self._beside(path, table.column(self.key)) if path else None
        elif field.name in self.columns:
            name = self.columns[field.name]
            found = table.column(name) if name in table.column_names else None
        else:
            names = pa.array([shard], pa.string())
            return pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int32), names)
        if found is None:
            return pa.nulls(len(table), field.type)
        return _whole(found.cast(field.type))

    def _beside(self, path: str, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """The values of a score file in the order of `keys`, null where it has none."""
        with _parquet(self.folder, path) as file:
            scores = file.read(columns=["key", "value"], use_threads=False)
        if scores.column("key").equals(keys):
            return scores.column("value")
        place = pc.index_in(_whole(keys), value_set=_whole(scores.column("key")))
        if len(place) - place.null_count < len(scores):
            raise Misaligned(path)
        return scores.column("value").take(place)


@dataclass(frozen=True)
class Footer:
    """What a parquet file's footer says: its rows, its schema, columns' least and greatest values.

    A column that the file lacks, or that holds nothing but null and NaN, has no span; one of
    which the footer does not tell has None. NaN is left out of what footers say.
    """

    rows: int
    schema: Any
    spans: Mapping[str, tuple[Any, Any] | None]


def read_footers(folder: Folder, paths: Sequence[str], columns: Sequence[str]) -> Iterator[Footer]:
    """The footer of each file, with the spans of `columns`."""
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        yield from pool.map(lambda path: _read_footer(folder, path, columns), paths)


def look_over(folder: Folder, paths: Sequence[str], key: str) -> tuple[list[int], int, bool]:
    """What footers tell of files that hold one row a key, so that no key is read.

    Indices of the files whose keys may repeat an earlier file's, the rows of the others, and
    whether all have the same columns.
    """
    later, total, top, alike, first = [], 0, "", True, None
    for i, footer in enumerate(read_footers(folder, paths, [key])):
        first = first or footer.schema
        alike = alike and footer.schema.equals(first)
        low, high = footer.spans.get(key) or (None, None)
        if footer.rows and (low is None or low <= top):
            later.append(i)
        else:
            total += footer.rows
        top = max(top, high or "")
    return later, total, alike


def column_ends(
    folder: Folder, paths: Sequence[str], columns: Sequence[str]
) -> dict[str, tuple[Any, ...] | None]:
    """Each column's least and greatest value in all files; empty without any, None if not told."""
    ends: dict[str, tuple[Any, ...] | None] = {name: () for name in columns}
    for footer in read_footers(folder, paths, columns):
        for name, span in footer.spans.items():
            known = ends[name]
            if span is None or known is None:
                ends[name] = None
            else:
                low, high = known or span
                ends[name] = min(low, span[0]), max(high, span[1])
    return ends


def _read_footer(folder: Folder, path: str, columns: Sequence[str]) -> Footer:
    with _parquet(folder, path) as file:
        footer = file.metadata
    places = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
    spans: dict[str, tuple[Any, Any] | None] = {}
    for name in columns:
        if name in places:
            groups = range(footer.num_row_groups)
            ends = [_ends(footer.row_group(group).column(places[name])) for group in groups]
            known = [end for end in ends if end]
            if None in ends:
                spans[name] = None
            elif known:
                spans[name] = min(low for low, _ in known), max(high for _, high in known)
    return Footer(footer.num_rows, footer.schema, spans)


def _ends(chunk: Any) -> tuple[Any, ...] | None:
    """Least and greatest value of one row group; empty where there is none, None if not told."""
    told = chunk.statistics
    if told is None:
        return None
    if told.has_min_max:
        return told.min, told.max
    nothing = told.has_null_count and told.null_count == chunk.num_values
    return () if nothing or chunk.physical_type in ("FLOAT", "DOUBLE") else None


def _parquet(folder: Folder, path: str, few: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a parquet file; a local one without Python's files between, which are slow.

    Raises InputError where it cannot be read.
    """
    source = folder.at(path) if folder.is_local else folder.open(path)
    try:
        return pq.ParquetFile(source, read_dictionary=few, pre_buffer=not folder.is_local)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{folder.at(path)} cannot be read: {one_line(error)}") from error


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
