"""The table of an adopted tar: the parquet beside it, or one of our own where there is none."""

import json
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.backends.line_tables import json_array, json_type
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.schemas import FETCHED_COLUMNS, PUBLISHED_COLUMNS, Reason, Status
from laionkit.core.shards import Member, image_member, read_contents, read_member
from laionkit.ops.images import PictureError, read_size
from laionkit.ops.laion_schemas import carried_columns
from laionkit.ops.link_rows import repair

_SIZE_BYTES = 1 << 16


def table_counts(folder: Folder, path: str) -> Counts:
    """How many samples an img2dataset parquet has and why the others failed."""
    try:
        with folder.open(path) as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            if "key" not in names:
                raise InputError(f"{path} has no column key; it has {', '.join(names)}")
            if "status" not in names:
                return Counts.of(parquet.metadata.num_rows, {})
            wanted = [name for name in ("status", "reason") if name in names]
            rows = parquet.read(columns=wanted).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not readable parquet: {error}") from error
    reasons: dict[str, int] = {}
    given = rows.get("reason") or [None] * len(rows["status"])
    for status, reason in zip(rows["status"], given, strict=True):
        if status != Status.SUCCESS:
            why = reason or status or Reason.ENGINE_FAILED.value
            reasons[why] = reasons.get(why, 0) + 1
    return Counts.of(len(rows["status"]) - sum(reasons.values()), reasons)


def named_table(folder: Folder, path: str) -> pa.Table | None:
    """A parquet's rows with what came with the link under our names; None where it is so already.

    Every column and value stays; a type is repaired where no value is lost by it.
    """
    with folder.open(path) as file:
        table = pq.read_table(file)
    return with_our_names(table)


def with_our_names(table: pa.Table) -> pa.Table | None:
    """Rows with the columns that came with the link renamed; None where there is none to rename."""
    ours = {theirs: name for name, theirs in carried_columns(table).items()}
    names = [ours.get(name, name) for name in table.column_names]
    if names == table.column_names:
        return None
    arrays = []
    for name, column in zip(names, table.columns, strict=True):
        kind = PUBLISHED_COLUMNS.get(name, column.type)
        repaired = repair(column, kind)
        arrays.append(column if repaired.null_count > column.null_count else repaired)
    return pa.table(arrays, names=names)


def table_of_tar(file: BinaryIO) -> tuple[pa.Table, str]:
    """A table of a webdataset tar's samples, in key order, and what is damaged in it.

    Columns: url, caption, img2dataset's, then whatever else the samples' JSON files say, under
    our names. Sizes are the JSON's, else the picture's own.
    """
    contents = read_contents(file)
    said = [_json(file, members) for members in contents.samples.values()]
    rows = [
        _row(file, key, members, told)
        for (key, members), told in zip(contents.samples.items(), said, strict=True)
    ]
    types = {"url": pa.string(), "caption": pa.string(), **FETCHED_COLUMNS}
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))
    for name in dict.fromkeys(name for told in said for name in told if name not in types):
        kind = json_type(said, name)
        if any(told.get(name) is not None for told in said):
            values = json_array([told.get(name) for told in said], kind)
            table = table.append_column(name, values)
    return with_our_names(table) or table, contents.damage


def tar_counts(table: pa.Table) -> Counts:
    """Counts of a table of ours."""
    reasons: dict[str, int] = {}
    for reason in table["reason"].to_pylist():
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
    return Counts.of(table.num_rows - sum(reasons.values()), reasons)


def _row(
    file: BinaryIO, key: str, members: dict[str, Member], said: dict[str, Any]
) -> dict[str, Any]:
    picture = image_member(members)
    caption = said.get("caption")
    if "txt" in members:
        caption = read_member(file, members["txt"]).decode("utf-8", "replace").strip()
    row = {
        "key": key,
        "url": _text(said.get("url")),
        "caption": _text(caption),
        "status": Status.SUCCESS.value,
        "exif": _text(said.get("exif")),
        "sha256": _text(said.get("sha256")),
    }
    if picture is None:
        reason = Reason.MEMBER_MISSING
        return {**row, "status": reason.status.value, "reason": reason.value}
    return row | _sizes(said, file, picture[1])


def _sizes(said: dict[str, Any], file: BinaryIO, picture: Member) -> dict[str, int | None]:
    names = ("width", "height", "original_width", "original_height")
    found = {name: _number(said.get(name)) for name in names}
    if found["width"] is None or found["height"] is None:
        start = Member(picture.offset, min(picture.size, _SIZE_BYTES))
        try:
            _, found["width"], found["height"] = read_size(read_member(file, start))
        except PictureError:
            return found
    return found


def _json(file: BinaryIO, members: dict[str, Member]) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        value = json.loads(read_member(file, members["json"]))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _number(value: Any) -> int | None:
    fits = isinstance(value, int | float) and 0 < value < 2**31
    return int(value) if fits else None
