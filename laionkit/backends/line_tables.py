"""Files of lines as batches of rows: JSON objects, or bare links."""

import codecs
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

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

LINES_PER_BATCH = 20_000


class LinesTable:
    """A file of lines: JSON objects (jsonl) or bare links (txt). Empty lines are no rows."""

    def __init__(self, file: SourceFile) -> None:
        """Read the first lines to learn names and types."""
        self.file, self.name = file, file.name
        self.total: int | None = None
        self._is_json = file.format == "jsonl"
        first = next((rows for rows, _, bad in self._parsed() if rows or bad), None)
        if first is None:
            raise InputError(f"{self.name} is empty")
        first = first[:HEAD_ROWS]
        if self._is_json:
            names = list(dict.fromkeys(name for row in first for name in row))
            self.schema = pa.schema([(name, json_type(first, name)) for name in names])
        else:
            self.schema = pa.schema([("url", pa.string())])
        self._head = self._table(first, self.schema.names)

    def head(self) -> pa.Table:
        """The first rows."""
        return self._head

    def batches(self, columns: Sequence[str], sift: Sift | None = None) -> Iterator[Batch]:
        """Every row, in order, with these columns."""
        try:
            for rows, numbers, bad in self._parsed():
                yield Batch(self._table(rows, columns), np.array(numbers, np.int64), tuple(bad))
        except (pa.ArrowException, OSError, EOFError) as error:
            raise unreadable(self.file, error) from error

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
            json_array([row.get(name) for row in rows], kind)
            for name, kind in zip(columns, kinds, strict=True)
        ]
        return pa.table(arrays, names=list(columns))


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    rest = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
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
        value = load_json(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value else None


def load_json(data: bytes) -> Any:
    """The value of a JSON text, halves of surrogate pairs (no characters of Unicode) as '?'.

    Raises ValueError or RecursionError where it is none.
    """
    value = json.loads(data)
    if b"\\ud" in data.lower():
        whole = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        value = json.loads(whole)
    return value


def json_type(rows: Sequence[Mapping[str, Any]], name: str) -> pa.DataType:
    """The type that holds what JSON objects say under a name; text where nothing else does."""
    values = [row.get(name) for row in rows]
    try:
        kind = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        numbers = all(v is None or isinstance(v, int | float) for v in values)
        return pa.float64() if numbers else pa.string()
    return pa.string() if pa.types.is_nested(kind) or pa.types.is_null(kind) else kind


def json_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """JSON values as a column of a type; null where one does not fit, JSON where it is text."""
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
