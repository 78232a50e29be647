"""One pass over a dataset shard by shard, each score file laid beside its shard's table.

Joining all keys with all keys is most of what a pass over ten million rows costs. A score file
holds keys of its own shard alone, mostly the same ones in the same order: each shard's keys are
compared as they are stored, looked up where they differ, and where a score finds no row the pass
is given up.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
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
        with _Parquet(self.folder, path, self.key, few) as rows:
            table = rows.read(set(self.columns.values()))
            arrays = [self._column(field, shard, rows, table) for field in self.schema]
        return pa.record_batch(arrays, schema=self.schema)

    def _column(self, field: pa.Field, shard: str, rows: "_Parquet", table: pa.Table) -> pa.Array:
        if field.name in self.scores:
            path = self.scores[field.name].get(shard)
            found = self._beside(path, rows) if path else None
        elif field.name in self.columns:
            name = self.columns[field.name]
            found = table.column(name) if name in table.column_names else None
        else:
            names = pa.array([shard], pa.string())
            return pa.DictionaryArray.from_arrays(np.zeros(rows.count, np.int32), names)
        if found is None:
            return pa.nulls(rows.count, field.type)
        return _whole(found if found.type == field.type else found.cast(field.type))

    def _beside(self, path: str, rows: "_Parquet") -> pa.ChunkedArray:
        """The values of a score file in the order of the keys of `rows`, null where it has none."""
        with _Parquet(self.folder, path, "key") as scores:
            value = scores.read({"value"}).column("value")
            if scores.stored_keys == rows.stored_keys or scores.keys.equals(rows.keys):
                return value
            place = scores.places(rows.keys)
        if len(place) - place.null_count < scores.count:
            raise Misaligned(path)
        return value.take(place)


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
    with _Parquet(folder, path) as file:
        footer = file.footer
    places = _places(footer)
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


def _places(footer: Any) -> dict[str, int]:
    """Where each column stands in a row group."""
    return {footer.schema.column(i).path: i for i in range(footer.num_columns)}


def _ends(chunk: Any) -> tuple[Any, ...] | None:
    """Least and greatest value of one row group; empty where there is none, None if not told."""
    told = chunk.statistics
    if told is None:
        return None
    if told.has_min_max:
        return told.min, told.max
    nothing = told.has_null_count and told.null_count == chunk.num_values
    return () if nothing or chunk.physical_type in ("FLOAT", "DOUBLE") else None


class _Parquet:
    """A parquet file held open, `key` the name of its column of keys."""

    def __init__(
        self, folder: Folder, path: str, key: str = "key", few: Sequence[str] = ()
    ) -> None:
        """Open it; a local one without Python's files between, which are slow.

        Raises InputError where it cannot be read.
        """
        self._key = key
        try:
            self._source = (
                pa.OSFile(folder.at(path)) if folder.is_local
                else pa.PythonFile(folder.open(path), "r")
            )  # fmt: skip
            self._file = pq.ParquetFile(
                self._source, read_dictionary=few, pre_buffer=not folder.is_local
            )
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{folder.at(path)} cannot be read: {one_line(error)}") from error
        self.footer = self._file.metadata
        self.count: int = self.footer.num_rows

    def __enter__(self) -> "_Parquet":
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def read(self, columns: Collection[str]) -> pa.Table:
        """Those of `columns` that are there."""
        there = [name for name in self._file.schema_arrow.names if name in columns]
        return self._file.read(columns=there, use_threads=False)

    @cached_property
    def keys(self) -> pa.Array:
        """The keys."""
        return _whole(self.read({self._key}).column(self._key))

    @cached_property
    def stored_keys(self) -> list[tuple[Any, ...]]:
        """The keys as they are stored, by row group: files that agree in it have the same keys.

        Equal tables are written as equal bytes, which to compare costs a tenth of decoding them.
        """
        place = _places(self.footer)[self._key]
        levels = self.footer.schema.column(place).max_definition_level
        found = []
        for group in range(self.footer.num_row_groups):
            chunk = self.footer.row_group(group).column(place)
            start, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
            if dictionary and dictionary < start:
                start = dictionary
            data = self._source.read_at(chunk.total_compressed_size, start)
            found.append((levels, chunk.physical_type, chunk.compression, chunk.num_values, data))
        return found

    def places(self, keys: pa.Array) -> pa.Array:
        """Where each of `keys` stands in this file, null where it does not."""
        import pyarrow.compute as pc  # 40 ms that few passes need

        return pc.index_in(keys, value_set=self.keys)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
