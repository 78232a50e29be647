"""Writes the work list: rows in, parts of whole shards out, keys assigned on the way."""

import contextlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.ahead import Behind
from laionkit.core.files import Folder, HashingFile, Written
from laionkit.core.keys import KeyScheme
from laionkit.core.schemas import METADATA
from laionkit.core.worklist import FIRST_SHARD, SHARD_DIGITS, SHARD_SIZE

SHARDS_PER_PART = 100
COMPRESSION = "zstd"
COMPRESSION_LEVEL = 1
_TEXTS = ("url", "caption")


@dataclass(frozen=True)
class Part:
    """A finished part file and the rows in it."""

    name: str
    file: Written
    first_shard: int
    shards: int
    rows: int


class PartWriter:
    """Takes rows in any portions; writes a row group a shard and a file a hundred shards.

    `schema` is that of the rows, without ``key``. Rows that bring a column ``key`` keep it, and
    stand in a shard in its order. Nothing counts until its record is written, which is the
    caller's.
    """

    def __init__(
        self, dataset: Folder, scheme: KeyScheme, schema: pa.Schema, first_shard: int, number: int
    ) -> None:
        """Begin at shard `first_shard` and part `number`."""
        self.dataset, self.scheme, self.schema = dataset, scheme, schema
        self.shard, self.number = first_shard, number
        self.parts: list[Part] = []
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0
        self._open: _OpenPart | None = None
        self._encoder = Behind(4)  # shards are encoded while the next rows come

    def add(self, table: pa.Table) -> None:
        """Take rows; whole shards are written at once."""
        self._waiting.append(table)
        self._rows_waiting += table.num_rows
        size = self.scheme.shard_size
        if self._rows_waiting < size:
            return
        rows = pa.concat_tables(self._waiting)
        whole = rows.num_rows // size * size
        self._encoder.hand_over(self._write_shards, rows.slice(0, whole))
        rest = rows.slice(whole)
        self._waiting, self._rows_waiting = ([rest] if rest.num_rows else []), rest.num_rows

    def finish(self) -> list[Part]:
        """Write what waits and close the last part. At least one part comes of it."""
        if self._rows_waiting:
            self._encoder.hand_over(self._write_shards, pa.concat_tables(self._waiting))
        self._encoder.wait()
        if self._open is None and not self.parts:
            self._open = self._begin_part()
        self._end_part()
        return self.parts

    def __enter__(self) -> "PartWriter":
        """Use as a context: a part that was not finished leaves nothing behind."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Throw the open part away."""
        self._encoder.close()
        if self._open is not None:
            self._open.discard()
            self._open = None

    def _write_shards(self, rows: pa.Table) -> None:
        for start in range(0, rows.num_rows, self.scheme.shard_size):
            self._write(rows.slice(start, self.scheme.shard_size))

    def _write(self, rows: pa.Table) -> None:
        if self._open is None:
            self._open = self._begin_part()
        if "key" in rows.column_names:
            rows = rows.sort_by("key").select(["key", *self.schema.names])
        else:
            keys = self.scheme.keys(self.shard, rows.num_rows)
            rows = rows.add_column(0, pa.field("key", pa.string()), [keys])
        self._open.write(rows)
        self.shard += 1
        if self._open.shards == SHARDS_PER_PART:
            self._end_part()

    def _begin_part(self) -> "_OpenPart":
        said = {
            SHARD_SIZE: str(self.scheme.shard_size),
            SHARD_DIGITS: str(self.scheme.shard_digits),
            FIRST_SHARD: str(self.shard),
        }
        fields = [pa.field("key", pa.string()), *self.schema]
        schema = pa.schema(fields, metadata=said)
        return _OpenPart(self.dataset, part_name(self.number), schema, self.shard)

    def _end_part(self) -> None:
        if self._open is not None:
            self.parts.append(self._open.finish())
            self._open, self.number = None, self.number + 1


class _OpenPart:
    """One part on its way: a parquet writer over a file that is not there yet."""

    def __init__(self, dataset: Folder, name: str, schema: pa.Schema, first_shard: int) -> None:
        self.name, self.first_shard, self.shards, self.rows = name, first_shard, 0, 0
        self.path = f"{METADATA}/{name}.parquet"
        self._stack = contextlib.ExitStack()
        self._file: HashingFile = self._stack.enter_context(dataset.create(self.path))
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression=COMPRESSION,
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=False,
            # Long texts take a sixth less time with their lengths ahead of them, and nobody asks
            # for the least and greatest of them, which took another tenth.
            column_encoding={n: "DELTA_LENGTH_BYTE_ARRAY" for n in schema.names if n in _TEXTS},
            write_statistics=[name for name in schema.names if name not in _TEXTS],
        )

    def write(self, table: pa.Table) -> None:
        table = table.combine_chunks()  # pages must not hang on how the rows came
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.shards += 1
        self.rows += table.num_rows

    def finish(self) -> Part:
        self._writer.close()
        self._stack.close()
        written = Written(self.path, self._file.size, self._file.digest.hexdigest())
        return Part(self.name, written, self.first_shard, self.shards, self.rows)

    def discard(self) -> None:
        with contextlib.suppress(_Discarded), self._stack:
            self._writer.close()
            raise _Discarded


class _Discarded(Exception):
    """Unwinds an open part, so that its temporary file goes away."""


def part_name(number: int) -> str:
    """The name of a part, which is its record's name as well."""
    return f"part-{number:05d}"
