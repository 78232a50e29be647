"""The table of an adopted tar: the parquet beside it, or one of our own where there is none."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laionkit.backends.line_tables import json_array, json_type, load_json
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.schemas import FETCHED_COLUMNS, PUBLISHED_COLUMNS, Reason, Status
from laionkit.core.tars import Member, image_member, read_contents, read_member, read_text
from laionkit.ops.images import PictureError, read_size
from laionkit.ops.laion_schemas import carried_columns
from laionkit.ops.link_rows import repair

TABLE_SCHEMA = pa.schema([("url", pa.string()), ("caption", pa.string()), *FETCHED_COLUMNS.items()])
_SIZE_BYTES = 1 << 16
_MAX_JSON_BYTES = 1 << 24
# Keys name members of tars that others unpack: none may lead out of the folder they unpack to.
_LEADS_OUT = r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|\x00"


def table_counts(folder: Folder, path: str) -> Counts:
    """How many samples an img2dataset parquet has and why the others failed."""
    try:
        with folder.open(path) as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            if "key" not in names:
                raise InputError(f"{path} has no column key; it has {', '.join(names)}")
            require_inside(parquet.read(columns=["key"])["key"].cast(pa.string()), path)
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


def require_inside(keys: pa.Array | pa.ChunkedArray, where: str) -> None:
    """Refuse keys of other tools that lead out of a folder, such as ``../a``.

    Raises InputError naming `where` they stand and the first such key.
    """
    bad = keys.filter(pc.match_substring_regex(keys, _LEADS_OUT))
    if len(bad):
        raise InputError(
            f"{where} has the key {bad[0].as_py()!r}, which leads out of the folder its tar is "
            "unpacked to: give its samples other names"
        )


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


def table_of_tar(file: BinaryIO, name: str) -> tuple[pa.Table, str]:
    """A table of a webdataset tar's samples, in key order, and what is damaged in it.

    Columns: url, caption, img2dataset's, then whatever else the samples' JSON files say, under
    our names. Sizes are the JSON's, else the picture's own. Raises InputError where a member of
    the tar called `name` comes twice or would be unpacked outside of a folder.
    """
    contents = read_contents(file)
    if contents.repeated:
        raise InputError(
            f"{name} holds {contents.repeated!r} twice: keys are unique in a dataset; write the "
            "tar anew with each sample once"
        )
    said = [_json(file, members) for members in contents.samples.values()]
    rows = [
        _row(file, key, members, told)
        for (key, members), told in zip(contents.samples.items(), said, strict=True)
    ]
    rows += [_lost(key, Reason.CORRUPT_TAR, contents.damage) for key in contents.cut]
    table = pa.Table.from_pylist(rows, schema=TABLE_SCHEMA)
    require_inside(table["key"], name)
    return with_said(table, [*said, *({} for _ in contents.cut)]), contents.damage


def with_said(table: pa.Table, said: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of ours, and beside each row what else its sample's JSON file said."""
    names = dict.fromkeys(name for told in said for name in told if name not in TABLE_SCHEMA.names)
    for name in names:
        values = [told.get(name) for told in said]
        if any(value is not None for value in values):
            table = table.append_column(name, json_array(values, json_type(said, name)))
    return with_our_names(table) or table


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
        caption = read_text(file, members["txt"]).strip()
    row = {
        "key": key,
        "url": said_text(said.get("url")),
        "caption": said_text(caption),
        "status": Status.SUCCESS.value,
        "exif": said_text(said.get("exif")),
        "sha256": said_text(said.get("sha256")),
    }
    if picture is None:
        return row | _lost(key, Reason.MEMBER_MISSING)
    return row | _sizes(said, file, picture[1])


def _lost(key: str, reason: Reason, detail: str | None = None) -> dict[str, Any]:
    about = {"status": reason.status.value, "reason": reason.value, "error_message": detail}
    return {"key": key, **about}


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
    if "json" not in members or members["json"].size > _MAX_JSON_BYTES:
        return {}
    return read_json(read_member(file, members["json"]))


def read_json(data: bytes) -> dict[str, Any]:
    """What a sample's JSON file says under names a column can have; nothing if it is no object."""
    try:
        value = load_json(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {name.replace("\0", "?") or "unnamed": told for name, told in value.items()}


def said_text(value: Any) -> str | None:
    """What a file says where text is expected: JSON of whatever is none."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _number(value: Any) -> int | None:
    fits = isinstance(value, int | float) and 0 < value < 2**31
    return int(value) if fits else None
