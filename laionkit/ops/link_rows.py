"""Rows of links: types repaired, LAION's hash computed, malformed rows told from good ones."""

import math
import re
from collections.abc import Mapping, Sequence, Set

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.schemas import PUBLISHED_COLUMNS, RESERVED_COLUMNS
from laionkit.ops.laion_schemas import Reading

_PARTS = r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<host>[^/?#]*)(?P<rest>[^#]*)"
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def output_type(ours: str, theirs: pa.DataType) -> pa.DataType:
    """The type a column is stored with: the canonical one, else its own without odd encodings."""
    if ours in PUBLISHED_COLUMNS:
        return PUBLISHED_COLUMNS[ours]
    return plain_type(theirs)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A carried type as parquet readers and DuckDB take it, also within lists, maps, structs.

    No dictionary, no large or viewed text or list, no null type, no half floats, no decimals of
    more than 38 digits (which become text), nothing of an extension but what it stores.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if types.is_large_string(kind) or types.is_null(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_float16(kind):
        return pa.float32()
    if types.is_decimal256(kind):
        fits = kind.precision <= 38
        return pa.decimal128(kind.precision, kind.scale) if fits else pa.string()
    if types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(f.name, plain_type(f.type)) for f in kind])
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

    A value that its type cannot hold becomes null.
    """
    arrays = []
    columns = {name.lower(): theirs for name, theirs in reading.columns.items()}
    for field in schema:
        theirs = columns.get(field.name.lower())
        if theirs is not None and theirs in table.column_names:
            arrays.append(repair(table[theirs], field.type))
        else:
            arrays.append(pa.nulls(table.num_rows, field.type))
    return pa.table(arrays, schema=schema)


def with_trimmed_urls(rows: pa.Table) -> pa.Table:
    """Rows whose links have lost the space around them."""
    if "url" not in rows.column_names:
        return rows
    return _set(rows, "url", pc.utf8_trim_whitespace(rows["url"]))


def with_hash(rows: pa.Table, reading: Reading) -> pa.Table:
    """Rows whose source has links but no hash, with LAION's hash."""
    if "hash" in reading.columns or "url" not in reading.columns:
        return rows
    return _set(rows, "hash", laion_hash(rows["url"], rows["caption"]))


def with_normal_urls(rows: pa.Table) -> pa.Table:
    """Rows with their links in one spelling: scheme and host in lower case, no default port.

    The fragment, which no server sees, goes too; an empty path becomes ``/``. What is no link
    stays as it is.
    """
    parts = pc.extract_regex(rows["url"], _PARTS)
    scheme = pc.utf8_lower(pc.struct_field(parts, "scheme"))
    host = pc.utf8_lower(pc.struct_field(parts, "host"))
    for name, port in (("http", ":80"), ("https", ":443")):
        default = pc.and_(pc.equal(scheme, name), pc.ends_with(host, port))
        host = pc.if_else(default, pc.utf8_slice_codeunits(host, 0, -len(port)), host)
    rest = pc.struct_field(parts, "rest")
    rest = pc.if_else(pc.starts_with(rest, "/"), rest, pc.binary_join_element_wise("/", rest, ""))
    whole = pc.binary_join_element_wise(scheme, "://", host, rest, "")
    return _set(rows, "url", pc.coalesce(whole, rows["url"]))


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


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    def text(value: object) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    return pa.chunked_array([pa.array([text(v) for v in column.to_pylist()], pa.string())])


def _numbers_in_text(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_integer(kind):  # no way through float64, which loses a hash's last digits
        low, high = _bounds(kind)
        values = [_integer(text, low, high) for text in column.to_pylist()]
        return pa.chunked_array([pa.array(values, kind)])
    number = pc.match_substring_regex(column, _NUMBER)
    trimmed = pc.utf8_trim_whitespace(pc.if_else(number, column, pa.scalar(None, column.type)))
    return pc.replace_substring_regex(trimmed, r"^\+", "").cast(kind)


def _integer(text: str | None, low: int, high: int) -> int | None:
    if text is None or not re.fullmatch(_NUMBER, text):
        return None
    try:
        value = int(text)
    except ValueError:
        number = float(text)
        value = round(number) if math.isfinite(number) else high + 1
    return value if low <= value <= high else None


def _rounded(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    low, high = _bounds(kind)
    whole = pc.round(column)
    fits = pc.and_(pc.greater_equal(whole, float(low)), pc.less(whole, float(high + 1)))
    return pc.if_else(fits, whole, pa.scalar(None, column.type)).cast(kind, safe=False)


def _in_range(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    low, high = _bounds(kind)
    values = [v if v is not None and low <= v <= high else None for v in column.to_pylist()]
    return pa.chunked_array([pa.array(values, kind)])


def _bounds(kind: pa.DataType) -> tuple[int, int]:
    if pa.types.is_unsigned_integer(kind):
        return 0, 2**kind.bit_width - 1
    return -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def joined_name(name: str, taken: Set[str]) -> str:
    """What a joined column is called: its canonical name, or ``src_NAME`` where that is taken."""
    lower = name.lower()
    ours = lower if lower in PUBLISHED_COLUMNS else name
    if ours.lower() in taken or (lower in RESERVED_COLUMNS and lower not in PUBLISHED_COLUMNS):
        ours = f"src_{name}"
    while ours.lower() in taken:
        ours += "_2"
    return ours
