"""Rows of one source file as arrow batches, whatever its format, never the whole file at once.

What cannot be read as a row at all (a CSV line with too many fields, a line that is no JSON) comes
beside the batch it stands in, with its row number. Row numbers count from 0 and count such rows.
"""

import contextlib
import csv
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from laionkit.backends.sources import SourceFile
from laionkit.core.errors import InputError

BATCH_ROWS = 131_072
LINES_PER_BATCH = 20_000
HEAD_ROWS = 1_000
BLOCK_BYTES = 4 << 20
LOOK_BYTES = 64 << 10
MAX_LINE_BYTES = 16 << 20
_LINK = re.compile(r"^\s*[A-Za-z][A-Za-z0-9+.\-]*://\S+")


@dataclass(frozen=True)
class Batch:
    """Some rows of a source: the table, each row's number, and what was no row: (number, text)."""

    table: pa.Table
    rows: np.ndarray
    bad: tuple[tuple[int, str], ...] = ()


class SourceTable(Protocol):
    """A source file opened as a table. `total` is None where only reading it all would tell."""

    name: str
    schema: pa.Schema
    total: int | None

    def head(self) -> pa.Table:
        """The first rows, of which the schema is read."""

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """Every row, in order, with these columns."""

    def statistics(self) -> dict[str, tuple[int, Any, Any]]:
        """Column → nulls, least and greatest over all rows, for columns of which they are known."""


def open_table(file: SourceFile) -> SourceTable:
    """Open a source file by its format. Raises InputError where it is not what its name says."""
    try:
        if file.format == "parquet":
            return ParquetTable(file)
        if file.format in ("csv", "tsv"):
            return CsvTable(file, "," if file.format == "csv" else "\t")
        return LinesTable(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        raise _unreadable(file, error) from error


class ParquetTable:
    """A parquet file: only the columns asked for are read, by range where it is remote."""

    def __init__(self, file: SourceFile) -> None:
        """Read the footer."""
        self.file, self.name = file, file.name
        self._head: pa.Table | None = None
        with self._parquet(look=True) as parquet:
            self.schema: pa.Schema = parquet.schema_arrow.remove_metadata()
            self.total: int | None = parquet.metadata.num_rows
        doubled = {n for n in self.schema.names if self.schema.names.count(n) > 1}
        if doubled:
            raise InputError(f"{self.name} has two columns called {', '.join(sorted(doubled))}")

    def head(self) -> pa.Table:
        """The first rows, of which only the first pages are read."""
        if self._head is None:
            with self._parquet(look=True) as parquet:
                first = next(parquet.iter_batches(HEAD_ROWS, use_threads=False), None)
            rows = [] if first is None else [first]
            self._head = pa.Table.from_batches(rows, self.schema)
        return self._head

    def statistics(self) -> dict[str, tuple[int, Any, Any]]:
        """What the footer says of each column, where it says it of every row group."""
        with self._parquet(look=True) as parquet:
            footer = parquet.metadata
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

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """Every row, in order, with these columns."""
        start = 0
        try:
            with self._parquet() as parquet:
                for found in parquet.iter_batches(BATCH_ROWS, columns=list(columns)):
                    table = pa.Table.from_batches([found])
                    yield Batch(table, np.arange(start, start + len(found)))
                    start += len(found)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.file, error) from error

    @contextlib.contextmanager
    def _parquet(self, look: bool = False) -> Iterator[pq.ParquetFile]:
        with contextlib.ExitStack() as stack:
            if self.file.compression is None:
                buffer = LOOK_BYTES if look else BLOCK_BYTES
                raw = stack.enter_context(self.file.open_raw(buffer))
            else:  # a parquet file is read from its end: unpack it first
                raw = stack.enter_context(tempfile.TemporaryFile())
                with self.file.open() as packed:
                    shutil.copyfileobj(packed, raw, BLOCK_BYTES)
                raw.seek(0)
            ahead = not self.file.is_local and not look
            buffer = LOOK_BYTES if look else 1 << 20
            yield pq.ParquetFile(raw, pre_buffer=ahead, buffer_size=buffer)


class CsvTable:
    """A csv or tsv file, with or without a header line (one without a link in it is a header).

    Types are those of the first rows; every cell is read as text and cast afterwards, so that a
    cell of another type costs that cell alone.
    """

    def __init__(self, file: SourceFile, delimiter: str) -> None:
        """Read the first block to learn names and types."""
        self.file, self.name = file, file.name
        self.total: int | None = None
        self._quote = '"' if delimiter == "," else False
        self._delimiter = delimiter
        self._names = self._find_names()
        with self._reader(None, []) as reader:
            first = next(iter(reader), None)
        empty = pa.schema([(name, pa.string()) for name in self._names])
        self._head = pa.table(first).slice(0, HEAD_ROWS) if first else empty.empty_table()
        self.schema: pa.Schema = self._head.schema

    def head(self) -> pa.Table:
        """The first rows."""
        return self._head

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """Every row, in order, as text."""
        bad: list[tuple[int, str]] = []
        start = 0
        types = pa.schema([(name, pa.string()) for name in self._names])
        try:
            with self._reader(types, bad) as reader:
                for found in reader:
                    rows = _number_rows(start, len(found), [number for number, _ in bad])
                    start = int(rows[-1]) + 1 if len(rows) else start
                    mine = tuple(b for b in bad if b[0] < start)
                    bad[:] = [b for b in bad if b[0] >= start]
                    yield Batch(pa.Table.from_batches([found]).select(list(columns)), rows, mine)
            if bad:
                none = types.empty_table().select(list(columns))
                yield Batch(none, np.empty(0, np.int64), tuple(bad))
        except (pa.ArrowException, OSError, EOFError) as error:
            raise _unreadable(self.file, error) from error

    def statistics(self) -> dict[str, tuple[int, Any, Any]]:
        """Nothing is known before all is read."""
        return {}

    def _find_names(self) -> list[str]:
        with self.file.open() as file:
            text = _first_bytes(file, self.name).decode("utf-8-sig", "replace")
        lines = csv.reader(
            text.splitlines(),
            delimiter=self._delimiter,
            quoting=csv.QUOTE_MINIMAL if self._quote else csv.QUOTE_NONE,
        )
        first = next(lines, [])
        if not first:
            raise InputError(f"{self.name} is empty")
        self._has_header = not any(_LINK.match(cell) for cell in first)
        if not self._has_header:
            return [f"column_{i + 1}" for i in range(len(first))]
        names = [cell.strip() or f"column_{i + 1}" for i, cell in enumerate(first)]
        if len({name.lower() for name in names}) < len(names):
            raise InputError(f"{self.name} has two columns of one name: {', '.join(names)}")
        return names

    @contextlib.contextmanager
    def _reader(self, types: pa.Schema | None, bad: list[tuple[int, str]]) -> Iterator[Any]:
        offset = 2 if self._has_header else 1  # arrow counts rows from 1, the header among them

        def skip(row: Any) -> str:
            what = f"{row.actual_columns} fields, not {row.expected_columns}: {row.text}"
            bad.append((row.number - offset, what[:200]))
            return "skip"

        with (
            self.file.open() as file,
            pacsv.open_csv(
                file,
                pacsv.ReadOptions(
                    use_threads=False,
                    block_size=BLOCK_BYTES,
                    column_names=self._names,
                    skip_rows=1 if self._has_header else 0,
                ),
                pacsv.ParseOptions(
                    delimiter=self._delimiter,
                    quote_char=self._quote,
                    newlines_in_values=bool(self._quote),
                    invalid_row_handler=skip,
                ),
                pacsv.ConvertOptions(
                    check_utf8=True,
                    column_types=types,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            ) as reader,
        ):
            yield reader


class LinesTable:
    """A file of lines: JSON objects (jsonl) or bare links (txt). Empty lines are no rows."""

    def __init__(self, file: SourceFile) -> None:
        """Read the first lines to learn names and types."""
        self.file, self.name = file, file.name
        self.total: int | None = None
        self._is_json = file.format == "jsonl"
        first = next(self._parsed(), ([], [], []))[0][:HEAD_ROWS]
        if self._is_json:
            names = list(dict.fromkeys(name for row in first for name in row))
            self.schema = pa.schema([(name, _json_type(first, name)) for name in names])
        else:
            self.schema = pa.schema([("url", pa.string())])
        self._head = self._table(first, self.schema.names)

    def head(self) -> pa.Table:
        """The first rows."""
        return self._head

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """Every row, in order, with these columns."""
        try:
            for rows, numbers, bad in self._parsed():
                yield Batch(self._table(rows, columns), np.array(numbers, np.int64), tuple(bad))
        except (pa.ArrowException, OSError, EOFError) as error:
            raise _unreadable(self.file, error) from error

    def statistics(self) -> dict[str, tuple[int, Any, Any]]:
        """Nothing is known before all is read."""
        return {}

    def _parsed(self) -> Iterator[tuple[list[Any], list[int], list[tuple[int, str]]]]:
        with self.file.open() as file:
            numbered = enumerate(_lines(file, self.name))
            while lines := list(itertools.islice(numbered, LINES_PER_BATCH)):
                rows: list[Any] = []
                numbers: list[int] = []
                bad: list[tuple[int, str]] = []
                for number, line in lines:
                    row = _json_row(line) if self._is_json else line.decode("utf-8", "replace")
                    if row is None:
                        bad.append(
                            (number, "no JSON object: " + line[:160].decode("utf-8", "replace"))
                        )
                    elif row:
                        rows.append(row)
                        numbers.append(number)
                yield rows, numbers, bad

    def _table(self, rows: list[Any], columns: Sequence[str]) -> pa.Table:
        if not self._is_json:
            return pa.table({"url": pa.array(rows, pa.string())}).select(list(columns))
        kinds = [self.schema.field(name).type for name in columns]
        arrays = [
            _json_array([row.get(name) for row in rows], kind)
            for name, kind in zip(columns, kinds, strict=True)
        ]
        return pa.table(arrays, names=list(columns))


def _number_rows(start: int, count: int, bad: Sequence[int]) -> np.ndarray:
    """Row numbers of `count` good rows from `start` on, with `bad` numbers left out."""
    candidates = np.arange(start, start + count + len(bad))
    return candidates[~np.isin(candidates, np.array(bad, np.int64))][:count]


def _first_bytes(file: BinaryIO, name: str) -> bytes:
    data = file.read(1 << 16)
    while b"\n" not in data and len(data) < MAX_LINE_BYTES and (more := file.read(1 << 20)):
        data += more
    if b"\0" in data:
        raise InputError(f"{name} is no text: it holds zero bytes")
    return data.partition(b"\n")[0]


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    rest = b""
    while block := file.read(BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise InputError(f"{name} has a line of more than {MAX_LINE_BYTES >> 20} MiB")
        yield from (line.strip() for line in lines)
    if rest.strip():
        yield rest.strip()


def _json_row(line: bytes) -> dict[str, Any] | str | None:
    if not line:
        return ""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value else None


def _json_type(rows: list[dict[str, Any]], name: str) -> pa.DataType:
    values = [row.get(name) for row in rows]
    try:
        kind = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        numbers = all(v is None or isinstance(v, int | float) for v in values)
        return pa.float64() if numbers else pa.string()
    return pa.string() if pa.types.is_nested(kind) or pa.types.is_null(kind) else kind


def _json_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        values = [
            v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False)
            for v in values
        ]
        return pa.array(values, kind)
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([_fitting(value, kind) for value in values], kind)


def _fitting(value: Any, kind: pa.DataType) -> Any:
    try:
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None


def _unreadable(file: SourceFile, error: BaseException) -> InputError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{file.name} is not readable as {file.format}: {why}")
