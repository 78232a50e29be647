"""Rows of one source as arrow batches, whatever its format, never the whole file at once.

What cannot be read as a row at all (a CSV line with too many fields, a line that is no JSON) comes
beside the batch it stands in, with its row number. Row numbers count from 0 and count such rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from laionkit.backends.sources import SourceFile
from laionkit.core.errors import InputError

HEAD_ROWS = 1_000
BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True)
class Batch:
    """Some rows of a source: the table, each row's number, and what was no row: (number, text)."""

    table: pa.Table
    rows: np.ndarray
    bad: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Sift:
    """What to read before all else: `columns`, and whether rows of them ask for the others."""

    columns: tuple[str, ...]
    wanted: Callable[[Batch], bool]


class SourceTable(Protocol):
    """A source file opened as a table. `total` is None where only reading it all would tell."""

    name: str
    schema: pa.Schema
    total: int | None

    def head(self) -> pa.Table:
        """The first rows, of which the schema is read."""

    def batches(self, columns: Sequence[str], sift: Sift | None = None) -> Iterator[Batch]:
        """Every row, in order, with these columns.

        Where reading costs, a table may sift: a batch that is not wanted then comes with the
        columns that were read first, and no others.
        """

    def statistics(self) -> dict[str, tuple[int, Any, Any]]:
        """Column → nulls, least and greatest over all rows, for columns of which they are known."""


def unreadable(file: SourceFile, error: BaseException) -> InputError:
    """One line on what a format's reader stumbled over."""
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{file.name} is not readable as {file.format}: {why}")
