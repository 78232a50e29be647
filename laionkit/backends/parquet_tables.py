"""Parquet files as batches of rows: by column and row group, by range where they are remote."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.backends.source_tables import (
    BLOCK_BYTES,
    HEAD_ROWS,
    Batch,
    Sift,
    unreadable,
)
from laionkit.backends.sources import SourceFile
from laionkit.core.errors import InputError

BATCH_ROWS = 131_072
LOOK_BYTES = 64 << 10
# Row groups whose wanted columns are no larger than this are read ahead, in few large ranges.
AHEAD_BYTES = 128 << 20


class ParquetTable:
    """A parquet file: only the columns asked for are read, by range where it is remote."""

    def __init__(self, file: SourceFile) -> None:
        """Read the footer."""
        self.file, self.name = file, file.name
        self._by_range = not file.is_local and file.compression is None
        self._head: pa.Table | None = None
        with self._open() as raw:
            parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=LOOK_BYTES)
            self.schema: pa.Schema = parquet.schema_arrow.remove_metadata()
            self._footer: pq.FileMetaData = parquet.metadata
        self.total: int | None = self._footer.num_rows
        doubled = {n for n in self.schema.names if self.schema.names.count(n) > 1}
        if doubled:
            raise InputError(f"{self.name} has two columns called {', '.join(sorted(doubled))}")

    def head(self) -> pa.Table:
        """The first rows, of which only the first pages are read."""
        if self._head is None:
            with self._open() as raw:
                parquet = pq.ParquetFile(
                    raw, metadata=self._footer, pre_buffer=False, buffer_size=LOOK_BYTES
                )
                try:
                    first = next(parquet.iter_batches(HEAD_ROWS, use_threads=False), None)
                except (pa.ArrowException, OSError) as error:
                    raise unreadable(self.file, error) from error
            rows = [] if first is None else [first]
            self._head = pa.Table.from_batches(rows, self.schema)
        return self._head

    def statistics(self) -> dict[str, tuple[int, Any, Any]]:
        """What the footer says of each column, where it says it of every row group."""
        footer = self._footer
        found: dict[str, tuple[int, Any, Any]] = {}
        for i in range(footer.num_columns):
            stats = [footer.row_group(g).column(i) for g in range(footer.num_row_groups)]
            name = stats[0].path_in_schema if stats else ""
            told = [chunk.statistics for chunk in stats]
            if name in self.schema.names and all(
                t is not None and t.has_min_max and t.has_null_count for t in told
            ):
                least, greatest = min(t.min for t in told), max(t.max for t in told)
                found[name] = sum(t.null_count for t in told), least, greatest
        return found

    def batches(self, columns: Sequence[str], sift: Sift | None = None) -> Iterator[Batch]:
        """Every row, in order, with these columns.

        A remote file is sifted row group by row group: where none of its rows asks for the other
        columns, they are not read.
        """
        groups = range(self._footer.num_row_groups)
        try:
            with self._open() as raw:
                if not self._by_range:
                    yield from self._plain(raw, groups, columns)
                elif sift is None or set(sift.columns) >= set(columns):
                    for run in self._runs():
                        yield from self._plain(raw, run, columns)
                else:
                    with self._open() as second:  # its own position: both read at once
                        for group in groups:
                            yield from self._sifted(raw, second, group, columns, sift)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.file, error) from error

    def _plain(
        self, raw: BinaryIO, groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[Batch]:
        start = self._first_row(groups)
        for found in self._read(raw, groups, columns):
            yield Batch(pa.Table.from_batches([found]), np.arange(start, start + len(found)))
            start += len(found)

    def _sifted(
        self, raw: BinaryIO, second: BinaryIO, group: int, columns: Sequence[str], sift: Sift
    ) -> Iterator[Batch]:
        others = [name for name in columns if name not in sift.columns]
        rest: _Rows | None = None
        passed = 0
        for batch in self._plain(raw, [group], sift.columns):
            if sift.wanted(batch):
                rest = rest or _Rows(self._read(second, [group], others))
                rest.skip(passed)
                passed = 0
                found = rest.take(len(batch.rows))
                table = batch.table
                for name in others:
                    table = table.append_column(found.schema.field(name), found[name])
                yield Batch(table.select(list(columns)), batch.rows)
            else:
                passed += len(batch.rows)
                yield batch

    def _read(
        self, raw: BinaryIO, groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        size = sum(self._bytes(group, columns) for group in groups)
        ahead = self._by_range and size <= AHEAD_BYTES
        buffer = BLOCK_BYTES if self._by_range else 1 << 20
        parquet = pq.ParquetFile(
            raw, metadata=self._footer, pre_buffer=ahead, buffer_size=0 if ahead else buffer
        )
        yield from parquet.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=list(columns))

    def _runs(self) -> Iterator[range]:
        """Row groups in order, as many together as fill a batch."""
        first, rows = 0, 0
        for group in range(self._footer.num_row_groups):
            rows += self._footer.row_group(group).num_rows
            if rows >= BATCH_ROWS:
                yield range(first, group + 1)
                first, rows = group + 1, 0
        if rows:
            yield range(first, self._footer.num_row_groups)

    def _first_row(self, groups: Sequence[int]) -> int:
        return sum(self._footer.row_group(g).num_rows for g in range(groups[0] if groups else 0))

    def _bytes(self, group: int, columns: Sequence[str]) -> int:
        chunks = self._footer.row_group(group)
        found = (chunks.column(i) for i in range(chunks.num_columns))
        return sum(
            chunk.total_compressed_size
            for chunk in found
            if chunk.path_in_schema.partition(".")[0] in columns
        )

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        with contextlib.ExitStack() as stack:
            if self.file.compression is None:
                raw = stack.enter_context(self.file.open_raw(0))
            else:  # a parquet file is read from its end: unpack it first
                raw = stack.enter_context(tempfile.TemporaryFile())
                with self.file.open() as packed:
                    shutil.copyfileobj(packed, raw, BLOCK_BYTES)
                raw.seek(0)
            yield raw


class _Rows:
    """Rows of a stream of batches, as many at a time as are asked for."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._left: list[pa.RecordBatch] = []

    def take(self, rows: int) -> pa.Table:
        found: list[pa.RecordBatch] = []
        while rows:
            batch = self._left.pop() if self._left else next(self._batches)
            if len(batch) > rows:
                self._left.append(batch.slice(rows))
                batch = batch.slice(0, rows)
            found.append(batch)
            rows -= len(batch)
        return pa.Table.from_batches(found)

    def skip(self, rows: int) -> None:
        while rows:
            step = min(rows, BATCH_ROWS)
            self.take(step)
            rows -= step
