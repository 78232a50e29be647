"""Conditions of the form ``column < number`` judged by numpy, many times as fast as by SQL.

What a user asks of ten million rows is mostly that. Numbers are compared as the query engine does:
in the column's own type, null and NaN neither true nor false.

Shapes: N samples of a batch.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.schemas import Status
from laionkit.ops.predicates import Term
from laionkit.stages.subset.selection import NOT_FETCHED, PICTURE, Selection

Int64 = NDArray[np.int64]
# Codes, the conditions that fail as bits (bit 0 the picture), the numbers compared: [N] each.
Verdicts = tuple[Int64, Int64, list[NDArray[Any]]]

_COMPARISON = re.compile(
    r'(?:"[^"]+"|[a-z_][a-z0-9_]*) (>=|>|<=|<) (-?[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)'
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
# Types whose every value is a float of the type it is compared as.
_COMPARED_AS: dict[str, type[np.floating[Any]]] = {
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
    "INTEGER": np.float64,
    "SMALLINT": np.float64,
    "TINYINT": np.float64,
    "USMALLINT": np.float64,
    "UTINYINT": np.float64,
}


@dataclass(frozen=True)
class Comparison:
    """One condition ``column < number``, its number as the column's type holds it."""

    column: str
    sign: str
    number: np.floating[Any]

    def holds(self, value_N: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each value satisfies it; NaN does not."""
        found: NDArray[np.bool_] = _COMPARE[self.sign](value_N, self.number)
        return found


def read_comparison(term: Term, columns: Mapping[str, str]) -> Comparison | None:
    """The comparison that a term is, None where it is anything else."""
    found = _COMPARISON.fullmatch(term.sql)
    kind = _COMPARED_AS.get(columns[term.columns[0]]) if found else None
    if found is None or kind is None:
        return None
    return Comparison(term.columns[0], found.group(1), kind(found.group(2)))


def judge(
    selection: Selection,
    terms: Sequence[tuple[str, Comparison]],
    batches: Iterator[pa.RecordBatch],
    wanted: Sequence[int],
) -> Iterator[Verdicts]:
    """Judge batches of the dataset's rows by their status and then by `terms` (SQL, comparison).

    `wanted`: the conditions whose numbers are given back.
    """
    if "status" in selection.table.columns:
        selection.code(PICTURE, NOT_FETCHED)  # the step is there though it may drop nothing
    codes = [
        (selection.code(sql, sql), None if selection.keep_nulls
         else selection.code(sql, f"null:{term.column}"))
        for sql, term in terms
    ]  # fmt: skip
    for batch in batches:
        code_N = _status_codes(selection, batch)
        failed_N = (code_N != 0).astype(np.int64)
        values = {}
        for i, (_, term) in enumerate(terms):
            value_N = _numbers(batch.column(term.column), term.number.dtype)
            lost_N = ~term.holds(value_N)
            failed, null = codes[i]
            if null is None:
                lost_N &= ~np.isnan(value_N)
            failed_N |= lost_N.astype(np.int64) << (i + 1)
            first = np.flatnonzero(lost_N & (code_N == 0))
            code_N[first] = failed
            if null is not None:
                code_N[first[np.isnan(value_N[first])]] = null
            values[i] = value_N
        yield code_N, failed_N, [values[i] for i in wanted]


def _numbers(column: pa.Array, kind: "np.dtype[Any]") -> NDArray[Any]:
    """A column of numbers, null as NaN."""
    value_N = _values(column).astype(kind, copy=False)
    return np.where(_valid(column), value_N, kind.type(np.nan)) if column.null_count else value_N


def _valid(column: pa.Array) -> NDArray[np.bool_]:
    """Where a column is not null, as its bitmap says."""
    bitmap = column.buffers()[0]
    if bitmap is None:
        return np.ones(len(column), np.bool_)
    byte_B = np.frombuffer(bitmap, np.uint8)
    bit_N = np.unpackbits(byte_B, count=column.offset + len(column), bitorder="little")
    return bit_N[column.offset :].view(np.bool_)


def _values(column: pa.Array) -> NDArray[Any]:
    """A column as it lies in memory, anything where it is null.

    Arrow's own ways would first load pandas and all of its functions, which costs more than a
    million rows do.
    """
    kind = np.dtype(column.type.to_pandas_dtype())
    if not len(column):
        return np.empty(0, kind)
    return np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind.itemsize)


def _status_codes(selection: Selection, batch: pa.RecordBatch) -> Int64:
    """0 where the picture was had, else the code of what fetch says of it."""
    names = batch.schema.names
    if "status" not in names:
        return np.zeros(len(batch), np.int64)
    code_N = _dictionary_codes(selection, batch.column("status"), NOT_FETCHED)
    if "reason" in names and code_N.any():
        reason = _dictionary_codes(selection, batch.column("reason"), None)
        told = (code_N != 0) & (reason != 0) & _valid(batch.column("status"))
        code_N[told] = reason[told]
    return code_N


def _dictionary_codes(selection: Selection, column: pa.DictionaryArray, null: str | None) -> Int64:
    """The code of each row's word, 0 for success; `null` is what null is called, None for 0."""
    codes = [
        0 if word == Status.SUCCESS else selection.code(PICTURE, word)
        for word in column.dictionary.to_pylist()
    ]
    codes.append(selection.code(PICTURE, null) if null and column.null_count else 0)
    place_N = _values(column.indices)
    if column.null_count:
        place_N = np.where(_valid(column), place_N, len(codes) - 1)
    found: Int64 = np.array(codes, np.int64)[place_N]
    return found
