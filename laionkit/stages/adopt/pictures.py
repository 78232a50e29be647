"""Pictures that lie in no tar: folders of files, and parquet with their bytes in a column.

Shards never change and everything downstream reads tars, so that the bytes are copied, as they
are, into shards of the dataset's own.
"""

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.errors import InputError
from laionkit.core.files import Folder, Written
from laionkit.core.places import note_places
from laionkit.core.schemas import SHARDS, Reason, Status
from laionkit.core.shards import ShardWriter
from laionkit.core.tars import IMAGES_SCHEMA
from laionkit.ops.images import PictureError, read_size
from laionkit.stages.adopt.shards import TABLE_SCHEMA, read_json, said_text, with_said

FILES_PER_SHARD = 10_000
PICTURES = ("jpg", "jpeg", "png", "webp")
EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
CAPTIONS = ("caption", "text", "txt", "alt", "title")
KEYS = ("key", "__key__", "uid")
_ROWS_AT_ONCE = 32
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class FoundFiles:
    """Some of a folder's picture files: (key, absolute path, those of the .txt and .json or "")."""

    name: str
    files: tuple[tuple[str, str, str, str], ...]

    def paths(self) -> list[str]:
        """Every file of it."""
        return [path for _, *paths in self.files for path in paths if path]


@dataclass(frozen=True)
class FoundRows:
    """A parquet file, absolute, whose `column` holds pictures: binary, or a struct's ``bytes``."""

    name: str
    path: str
    column: str

    def paths(self) -> list[str]:
        """The one file."""
        return [self.path]


@dataclass(frozen=True)
class Sample:
    """One picture on its way into a tar, None where the source has none, and what is said of it."""

    key: str
    data: bytes | None
    caption: str | None
    said: Mapping[str, Any] = field(default_factory=dict)


def find_files(folder: Folder) -> list[FoundFiles]:
    """The picture files anywhere below `folder`, 10,000 a shard, in the order of their keys.

    A key is the path below the folder without its extension; where that is two files' (cat.jpg
    and cat.png), the extension is part of it. The caption is that of the .txt beside it, else what
    the .json there says, which img2dataset writes in its format ``files``.
    """
    root = folder.at("").rstrip("/")
    listed = {path.removeprefix(root).lstrip("/"): path for path in folder.fs.find(root)}
    names = [n for n in listed if posixpath.splitext(n)[1][1:].lower() in PICTURES]
    files_of = Counter(posixpath.splitext(name)[0] for name in names)
    found = []
    for name in names:
        stem = posixpath.splitext(name)[0]
        own = stem if files_of[stem] == 1 else name
        beside = [listed.get(f"{stem}.{kind}", "") for kind in ("txt", "json")]
        found.append((own.replace(".", "_"), listed[name], *beside))
    found.sort()
    starts = range(0, len(found), FILES_PER_SHARD)
    digits = max(5, len(str(len(starts))))
    return [
        FoundFiles(f"{i:0{digits}d}", tuple(found[start : start + FILES_PER_SHARD]))
        for i, start in enumerate(starts)
    ]


def find_rows(folder: Folder) -> list[FoundRows]:
    """The parquet files directly in `folder` that hold pictures, in name order."""
    found = []
    for name in folder.names("", ".parquet"):
        with folder.open(name) as file:
            try:
                column = _picture_column(pq.ParquetFile(file).schema_arrow)
            except pa.ArrowInvalid as error:
                raise InputError(f"{folder.at(name)} is not readable parquet: {error}") from error
        if column is not None:
            stem = name.removesuffix(".parquet").replace(".", "_")
            found.append(FoundRows(stem, folder.at(name), column))
    return found


def _picture_column(schema: pa.Schema) -> str | None:
    """The column of picture bytes; Hugging Face's image columns are structs with ``bytes``."""
    for column in schema:
        if pa.types.is_struct(column.type) and "bytes" in {child.name for child in column.type}:
            return f"{column.name}.bytes"
    kinds = (pa.binary(), pa.large_binary())
    binary: list[str] = [column.name for column in schema if column.type in kinds]
    named = [name for name in binary if name.lower().startswith(("image", "img", *PICTURES))]
    return next(iter(named or binary), None)


def samples_of_files(place: Folder, found: FoundFiles) -> Iterator[Sample]:
    """The pictures of files; one that went away in the meantime has no bytes."""
    for key, path, text, about in found.files:
        try:
            data = _read(place, path)
            said = read_json(_read(place, about)) if about else {}
            caption = _read(place, text).decode("utf-8", "replace").strip() if text else None
        except OSError:
            data, caption, said = None, None, {}
        caption = said_text(said.get("caption")) if caption is None else caption
        yield Sample(key, data, caption, said)


def _read(place: Folder, path: str) -> bytes:
    data: bytes = place.fs.cat_file(path)
    return data


def samples_of_rows(place: Folder, found: FoundRows) -> Iterator[Sample]:
    """The pictures of a parquet file, a few rows in memory; keys are the file's own or counted."""
    with place.fs.open(found.path, "rb") as file:
        parquet = pq.ParquetFile(file)
        lower = {name.lower(): name for name in reversed(parquet.schema_arrow.names)}
        key, caption, url = (_first(lower, names) for names in (KEYS, CAPTIONS, ("url",)))
        row = 0
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=_names_read(parquet, found)):
            for line in batch.to_pylist():
                picture = line.pop(found.column.partition(".")[0])
                data = picture.get("bytes") if isinstance(picture, dict) else picture
                own = line[key] if key else None
                name = f"{found.name}-{row:09d}" if own is None else str(own).replace(".", "_")
                text = line.pop(caption) if caption else None
                if url:
                    line["url"] = line.pop(url)
                yield Sample(name, data, said_text(text), line)
                row += 1


def _names_read(parquet: pq.ParquetFile, found: FoundRows) -> list[str]:
    """The column of pictures and what is said of them; no other binary column, nor nested ones."""
    binary = (pa.binary(), pa.large_binary())
    schema = parquet.schema_arrow
    carried = [f.name for f in schema if f.type not in binary and not pa.types.is_nested(f.type)]
    return [found.column, *(n for n in carried if n != found.column.partition(".")[0])]


def _first(columns: dict[str, str], names: tuple[str, ...]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def copy_shard(
    home: Folder, name: str, samples: Iterator[Sample]
) -> tuple[pa.Table, dict[str, Written]]:
    """Write ``shards/NAME.tar`` of the samples that are pictures, and note where each lies.

    Returns a table of all samples, and what was written by its role.
    """
    path, rows, said, noted = f"{SHARDS}/{name}.tar", [], [], []
    with home.create(path) as file, ShardWriter(file, ordered=False) as tar:
        for sample in samples:
            url = said_text(sample.said.get("url"))
            row = {"key": sample.key, "url": url, "caption": sample.caption}
            said.append(sample.said)
            try:
                extension, about = _look_at(sample.data)
            except PictureError as error:
                failed = {"status": error.reason.status.value, "reason": error.reason.value}
                rows.append({**row, **failed, "error_message": error.detail})
                continue
            assert sample.data is not None
            members = {extension: sample.data}
            if sample.caption is not None:
                members["txt"] = sample.caption.encode()
            offset = tar.add(sample.key, members)
            noted.append((sample.key, extension, offset, len(sample.data)))
            rows.append({**row, "status": Status.SUCCESS.value, **about})
    table = with_said(pa.Table.from_pylist(rows, schema=TABLE_SCHEMA), said)
    names = IMAGES_SCHEMA.names
    places = pa.Table.from_pylist(
        [dict(zip(names, place, strict=True)) for place in noted], schema=IMAGES_SCHEMA
    )
    written = Written(path, file.size, file.digest.hexdigest())
    return table, {"tar": written, "places": note_places(home, name, places)}


def _look_at(data: bytes | None) -> tuple[str, dict[str, Any]]:
    """A picture's extension in a tar, and what the table says of it. Raises PictureError."""
    if data is None:
        raise PictureError(Reason.FILE_MISSING, "no bytes there")
    kind, width, height = read_size(data[:_HEAD_BYTES])
    if kind not in EXTENSIONS:
        raise PictureError(Reason.FORMAT_REFUSED, f"{kind}: shards hold jpg, png and webp")
    sizes = {"width": width, "height": height}
    sizes |= {"original_width": width, "original_height": height}
    return EXTENSIONS[kind], {**sizes, "sha256": hashlib.sha256(data).hexdigest()}
