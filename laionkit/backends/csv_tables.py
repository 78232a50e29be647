"""csv and tsv files as batches of rows, every cell read as text and cast afterwards."""

import contextlib
import csv
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from laionkit.backends.csv_quotes import QuoteCheck
from laionkit.backends.source_tables import (
    BLOCK_BYTES,
    HEAD_ROWS,
    MAX_LINE_BYTES,
    Batch,
    Sift,
    unreadable,
)
from laionkit.backends.sources import SourceFile
from laionkit.core.errors import InputError

# What separates cells where a header line knows no other, as spreadsheets write it.
_DELIMITERS = ("\t", ";", ",", "|")
_LINK = re.compile(r"^\s*[A-Za-z][A-Za-z0-9+.\-]*://\S+")


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
        # Bytes first: one cell that is no UTF-8 must not cost the file.
        self._types = pa.schema([(name, pa.binary()) for name in self._names])
        with self._reader(None, []) as reader:
            first = next(iter(reader), None)
        first = first or pa.RecordBatch.from_pylist([], self._types)
        self._head = _texts(first.slice(0, HEAD_ROWS), self._names)
        self.schema: pa.Schema = self._head.schema

    def head(self) -> pa.Table:
        """The first rows."""
        return self._head

    def batches(self, columns: Sequence[str], sift: Sift | None = None) -> Iterator[Batch]:
        """Every row, in order, as text."""
        bad: list[tuple[int, str]] = []
        start = 0
        try:
            with self._reader(self._types, bad) as reader:
                for found in reader:
                    rows = _number_rows(start, len(found), [number for number, _ in bad])
                    start = int(rows[-1]) + 1 if len(rows) else start
                    mine = tuple(b for b in bad if b[0] < start)
                    bad[:] = [b for b in bad if b[0] >= start]
                    yield Batch(_texts(found, columns), rows, mine)
            if bad:
                none = pa.RecordBatch.from_pylist([], self._types)
                yield Batch(_texts(none, columns), np.empty(0, np.int64), tuple(bad))
        except (pa.ArrowException, OSError, EOFError) as error:
            raise unreadable(self.file, error) from error

    def statistics(self) -> dict[str, tuple[int, Any, Any]]:
        """Nothing is known before all is read."""
        return {}

    def _find_names(self) -> list[str]:
        with self.file.open() as file:
            text = _first_bytes(file, self.name).decode("utf-8-sig", "replace")
        first = self._cells(text)
        if not first:
            raise InputError(f"{self.name} is empty")
        self._has_header = not any(_LINK.match(cell) for cell in first)
        if self._has_header and len(first) == 1:
            self._delimiter = next((d for d in _DELIMITERS if d in text), self._delimiter)
            first = self._cells(text)
        if not self._has_header:
            return [f"column_{i + 1}" for i in range(len(first))]
        names = [cell.strip() or f"column_{i + 1}" for i, cell in enumerate(first)]
        if len({name.lower() for name in names}) < len(names):
            raise InputError(f"{self.name} has two columns of one name: {', '.join(names)}")
        return names

    def _cells(self, text: str) -> list[str]:
        lines = csv.reader(
            text.splitlines(),
            delimiter=self._delimiter,
            quoting=csv.QUOTE_MINIMAL if self._quote else csv.QUOTE_NONE,
        )
        return next(lines, [])

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
                QuoteCheck(file, self.name, self._delimiter) if self._quote else file,
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
                    column_types=types,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            ) as reader,
        ):
            yield reader


def _texts(rows: pa.RecordBatch, columns: Sequence[str]) -> pa.Table:
    """Bytes as text, what is no UTF-8 in them as U+FFFD; other columns as they are."""

    def text(cells: pa.Array) -> pa.Array:
        if not pa.types.is_binary(cells.type):
            return cells
        try:
            return cells.cast(pa.string())
        except pa.ArrowInvalid:
            whole = (c if c is None else c.decode("utf-8", "replace") for c in cells.to_pylist())
            return pa.array(whole, pa.string())

    return pa.table([text(rows[name]) for name in columns], names=list(columns))


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
