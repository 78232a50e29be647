"""Rows in a given order, whatever their number: thrown into files by place, read back sorted."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from laionkit.ops.laion_schemas import INNER_PREFIX

BUCKET_ROWS = 65_536
# Files that are open at once; what needs more is thrown again, bucket by bucket.
MOST_BUCKETS = 200
# Rows thrown at once: fewer would reach each file in scraps.
THROW_ROWS = 131_072
COMPRESSED = ipc.IpcWriteOptions(compression="lz4")
_PLACE = INNER_PREFIX + "place"


class Buckets:
    """Takes rows with their final places, 0 to `rows` - 1 each once; gives them in that order.

    No more than `THROW_ROWS` or `BUCKET_ROWS` rows are in memory at once.
    """

    def __init__(self, scratch: Path, schema: pa.Schema, rows: int, name: str = "bucket") -> None:
        """Make room for `rows` places, in files of `scratch` that begin with `name`."""
        self.scratch, self.schema, self.name = scratch, schema, name
        self.size = BUCKET_ROWS
        while self.size * MOST_BUCKETS < rows:
            self.size *= MOST_BUCKETS
        self._files: dict[int, tuple[contextlib.ExitStack, ipc.RecordBatchStreamWriter]] = {}
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0

    def __enter__(self) -> "Buckets":
        """Use as a context: open files are closed at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open."""
        for stack, _writer in self._files.values():
            stack.close()

    def add(self, rows: pa.Table, places: np.ndarray) -> None:
        """Take rows and the place of each."""
        self._take(rows.append_column(_PLACE, pa.array(places)))

    def read(self) -> Iterator[pa.Table]:
        """Every row in order; nothing can be added any more."""
        self._throw()
        for number in sorted(self._files):
            self._files[number][0].close()
            path = self._path(number)
            with pa.OSFile(str(path), "rb") as source, ipc.open_stream(source) as reader:
                if self.size > BUCKET_ROWS:
                    yield from self._thrown_again(number, reader)
                    rows = None
                else:
                    rows = reader.read_all()
            path.unlink()
            if rows is not None:
                yield rows.sort_by(_PLACE).drop_columns(_PLACE)

    def _thrown_again(self, number: int, reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
        name = f"{self.name}-{number}"
        with Buckets(self.scratch, self.schema, self.size, name) as smaller:
            for batch in reader:
                smaller._take(pa.Table.from_batches([batch]))
            yield from smaller.read()

    def _take(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self._rows_waiting += rows.num_rows
        if self._rows_waiting >= THROW_ROWS:
            self._throw()

    def _throw(self) -> None:
        if not self._rows_waiting:
            return
        rows = pa.concat_tables(self._waiting)
        self._waiting, self._rows_waiting = [], 0
        numbers = rows[_PLACE].to_numpy() // self.size
        order = np.argsort(numbers, kind="stable")
        rows = rows.take(pa.array(order)).combine_chunks()
        present, starts = np.unique(numbers[order], return_index=True)
        ends = [*starts[1:].tolist(), len(order)]
        for number, start, end in zip(present.tolist(), starts.tolist(), ends, strict=True):
            self._writer(number).write_table(rows.slice(start, end - start))

    def _writer(self, number: int) -> ipc.RecordBatchStreamWriter:
        if number not in self._files:
            stack = contextlib.ExitStack()
            sink = stack.enter_context(pa.OSFile(str(self._path(number)), "wb"))
            schema = self.schema.append(pa.field(_PLACE, pa.int64()))
            writer = stack.enter_context(ipc.new_stream(sink, schema, options=COMPRESSED))
            self._files[number] = stack, writer
        return self._files[number][1]

    def _path(self, number: int) -> Path:
        return self.scratch / f"{self.name}-{number}.arrow"
