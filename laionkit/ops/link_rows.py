"""Rows of links: types repaired, LAION's hash computed, malformed rows told from good ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.schemas import PUBLISHED_COLUMNS, Reason
from laionkit.ops.laion_schemas import Reading

# A scheme, "://" and a host; no control character anywhere. RE2 syntax.
_WHOLE_URL = r"^[A-Za-z][A-Za-z0-9+.\-]*://[^\s/?#]+[^\x00-\x1f\x7f]*$"
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_INTEGER = r"^\s*-?\d+\s*$"
_DETAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Malformed:
    """The malformed rows of a table: their positions, each one's reason and detail."""

    rows: np.ndarray
    reasons: list[str]
    details: list[str]


def output_type(ours: str, theirs: pa.DataType) -> pa.DataType:
    """The type a column is stored with: the canonical one, else its own without odd encodings."""
    if ours in PUBLISHED_COLUMNS:
        return PUBLISHED_COLUMNS[ours]
    return plain_type(theirs)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A carried type as parquet readers take it: no dictionary, no large string, no null type."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_null(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.binary()
    return kind


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type that holds a carried column of two sources; text where nothing else does."""
    if a == b:
        return a
    numeric = [pa.types.is_integer(k) or pa.types.is_floating(k) for k in (a, b)]
    if all(numeric):
        both_int = pa.types.is_integer(a) and pa.types.is_integer(b)
        return pa.int64() if both_int else pa.float64()
    return pa.string()


def canonical(table: pa.Table, reading: Reading, schema: pa.Schema) -> pa.Table:
    """Bring a source's rows into `schema`: renamed, types repaired, absent columns null.

    A value that its type cannot hold becomes null. URLs lose the space around them. The hash is
    computed where the source has none.
    """
    arrays = []
    columns = {name.lower(): theirs for name, theirs in reading.columns.items()}
    for field in schema:
        theirs = columns.get(field.name.lower())
        if theirs is not None and theirs in table.column_names:
            arrays.append(repair(table[theirs], field.type))
        else:
            arrays.append(pa.nulls(table.num_rows, field.type))
    out = pa.table(arrays, schema=schema)
    if "url" in reading.columns:
        out = _set(out, "url", _trimmed(out["url"]))
    if "hash" in schema.names and "hash" not in reading.columns and "url" in reading.columns:
        caption = out["caption"] if "caption" in schema.names else None
        out = _set(out, "hash", laion_hash(out["url"], caption))
    return out


def repair(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast a column to `kind`; values that do not fit become null, fractions round."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    if pa.types.is_string(kind):
        return _as_text(column)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    if _is_text(column.type):
        return _numbers_in_text(column, kind)
    if pa.types.is_integer(kind) and pa.types.is_floating(column.type):
        return _rounded(column, kind)
    if pa.types.is_integer(kind) and pa.types.is_integer(column.type):
        return _in_range(column, kind)
    return pa.chunked_array([pa.nulls(len(column), kind)])


def laion_hash(url: pa.ChunkedArray, caption: pa.ChunkedArray | None) -> pa.Array:
    """LAION's ``hash``: ``mmh3.hash64((url or "") + (text or ""))[0]``, signed 64 bits.

    A row with neither has none.
    """
    texts = pc.fill_null(url, "")
    if caption is not None:
        texts = pc.binary_join_element_wise(texts, pc.fill_null(caption, ""), "")
    hash64 = mmh3.hash64
    values = [hash64(text)[0] for text in texts.to_pylist()]
    return pa.array(values, type=pa.int64(), mask=np.asarray(pc.is_null(url)))


def malformed(table: pa.Table, reading: Reading) -> Malformed:
    """Find the rows that are no link at all: no URL, one that is none, or shifted columns."""
    if "url" not in reading.columns:
        return Malformed(np.empty(0, np.int64), [], [])
    url = table["url"]
    missing = pc.fill_null(pc.equal(url, ""), True)
    wrong = pc.and_(
        pc.invert(missing), pc.invert(pc.match_substring_regex(pc.fill_null(url, ""), _WHOLE_URL))
    )
    bad = pc.or_(missing, wrong)
    shifted = None
    if "similarity" in table.column_names:
        limit = reading.similarity_limit
        shifted = pc.fill_null(pc.greater(pc.abs(table["similarity"]), limit), False)
        bad = pc.or_(bad, shifted)
    rows = np.flatnonzero(np.asarray(bad))
    reasons, details = [], []
    for row in rows.tolist():
        if missing[row].as_py():
            reasons.append(Reason.MISSING_URL.value)
            details.append("")
        elif wrong[row].as_py():
            reasons.append(Reason.MALFORMED_URL.value)
            details.append(str(url[row].as_py())[:_DETAIL_CHARACTERS])
        else:
            reasons.append(Reason.MALFORMED_ROW.value)
            details.append(f"similarity={table['similarity'][row].as_py()}")
    return Malformed(rows, reasons, details)


def without(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The table without the rows at these positions."""
    if not len(rows):
        return table
    keep = np.ones(table.num_rows, bool)
    keep[rows] = False
    return table.filter(pa.array(keep))


def merge_columns(columns: Sequence[Mapping[str, pa.DataType]]) -> dict[str, pa.DataType]:
    """The columns of all sources: canonical ones first and in their order, then the carried."""
    merged: dict[str, pa.DataType] = {}
    for one in columns:
        for name, kind in one.items():
            same = next((m for m in merged if m.lower() == name.lower()), name)
            merged[same] = common_type(merged.get(same, kind), kind)
    ordered = {name: merged[name] for name in PUBLISHED_COLUMNS if name in merged}
    return ordered | {name: kind for name, kind in merged.items() if name not in ordered}


def _set(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)


def _trimmed(url: pa.ChunkedArray) -> pa.ChunkedArray:
    spaced = pc.match_substring_regex(url, r"^\s|\s$")
    return pc.utf8_trim_whitespace(url) if pc.any(spaced).as_py() else url


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    def text(value: object) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    return pa.chunked_array([pa.array([text(v) for v in column.to_pylist()], pa.string())])


def _numbers_in_text(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    exact = pa.types.is_integer(kind)
    whole = pc.match_substring_regex(column, _INTEGER if exact else _NUMBER)
    if exact and not pc.all(pc.fill_null(whole, True)).as_py():
        return repair(_numbers_in_text(column, pa.float64()), kind)
    trimmed = pc.utf8_trim_whitespace(pc.if_else(whole, column, pa.scalar(None, column.type)))
    trimmed = pc.replace_substring_regex(trimmed, r"^\+", "")
    try:
        return trimmed.cast(kind)
    except pa.ArrowInvalid:  # an integer outside the type
        return repair(trimmed.cast(pa.float64()), kind)


def _rounded(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    finite = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    return _in_range(pc.round(finite), kind)


def _in_range(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    bits = kind.bit_width - (0 if pa.types.is_unsigned_integer(kind) else 1)
    low, high = (0 if pa.types.is_unsigned_integer(kind) else -(2**bits)), 2**bits
    fits = pc.and_(pc.greater_equal(column, low), pc.less(column, float(high)))
    return pc.if_else(fits, column, pa.scalar(None, column.type)).cast(kind, safe=False)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
