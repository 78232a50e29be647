"""Where links come from: what a SOURCE argument names, file by file, and what identifies its bytes.

A source is a file, a folder, a glob, ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``, ``https://``
or any other fsspec URL. A folder holds link tables or, where there are none, pictures.
"""

import hashlib
import io
import os
import posixpath
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa

from laionkit.backends.range_files import (
    RangeFile,
    give_up_or_say,
    is_http,
    probe,
    remote_errors,
    tries,
)
from laionkit.core.errors import InputError

FORMATS = {
    "parquet": "parquet",
    "csv": "csv",
    "tsv": "tsv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "txt": "txt",
}
COMPRESSIONS = {"gz": "gzip", "zst": "zstd"}
PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "heic"})
# A local file up to this size is identified by its whole content, a larger one by its ends and
# middle, its size and its modification time.
WHOLE_HASH_BYTES = 64 << 20
SAMPLE_BYTES = 1 << 20
BUFFER_BYTES = 4 << 20


@dataclass(frozen=True)
class SourceFile:
    """One file of links: its name in records, where it lies, how it is written.

    `name` is the absolute path or URL (an ``hf://`` one with its revision pinned). `identity`
    names its bytes; `checksum` is their sha256 or md5 in hex where the server tells it. `size` is
    -1 where the server does not say it; `has_ranges` whether it sends parts of a file.
    """

    name: str
    fs: Any = field(repr=False)
    path: str
    format: str
    compression: str | None
    size: int
    identity: str
    checksum: str | None = None
    etag: str = ""
    has_ranges: bool = True

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine."""
        return _is_local(self.fs)

    def open(self) -> BinaryIO:
        """Open for reading, decompressed. Seekable unless it is compressed."""
        raw = self.open_raw()
        if self.compression is None:
            return raw
        return cast(BinaryIO, pa.CompressedInputStream(raw, self.compression))

    def open_raw(self, buffer_bytes: int = BUFFER_BYTES) -> BinaryIO:
        """Open for reading as it lies there: seekable, ranges only where it is remote.

        Without a buffer, a remote file asks for just the ranges it is asked for.
        """
        try:
            if self.is_local:
                return Path(self.path).open("rb")
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror}") from error
        if not self.has_ranges or self.size < 0:
            why = "sends no ranges" if self.size >= 0 else "does not say its size"
            raise InputError(f"{self.name}: the server {why}; add --download FOLDER")
        remote = RangeFile(self.fs, self.path, self.size, self.name, self.etag)
        return io.BufferedReader(remote, buffer_bytes) if buffer_bytes else cast(BinaryIO, remote)


@dataclass(frozen=True)
class PictureFolder:
    """A folder of pictures, sidecar captions beside them."""

    name: str
    fs: Any = field(repr=False)
    path: str


Source = SourceFile | PictureFolder


def find_sources(sources: Sequence[str]) -> list[Source]:
    """Every file and picture folder that the arguments name, in order, each once.

    A local file is one whatever its spelling and the links to it. One text is one argument, never
    a list of its letters: ``/`` would be the whole disk. Raises InputError for what is not there,
    cannot be read or is of no known format.
    """
    found: dict[str, Source] = {}
    for text in [sources] if isinstance(sources, str) else sources:
        for source in _find(text):
            place = os.path.realpath(source.path) if _is_local(source.fs) else source.name
            found.setdefault(place, source)
    return list(found.values())


def _find(text: str) -> Iterator[Source]:
    if text.startswith("hf://"):
        from laionkit.backends.hub import find_hub_files

        fs, paths = find_hub_files(text)
        yield from (_file(fs, path, f"hf://{path}") for path in _link_tables(paths))
        return
    try:
        fs, path = fsspec.core.url_to_fs(os.path.expanduser(text))  # noqa: PTH111 (a URL, too)
    except (ImportError, ValueError) as error:
        raise InputError(f"{text}: {error}") from error
    if text.startswith(("http://", "https://")):
        yield _file(fs, path, text)
        return
    try:
        yield from _find_on(fs, path, text)
    except remote_errors() as error:
        raise InputError(f"{text} cannot be read: {' '.join(str(error).split())}") from error


def _find_on(fs: Any, path: str, text: str) -> Iterator[Source]:
    if not fs.exists(path) and any(c in path for c in "*?["):
        paths = sorted(p for p in fs.glob(path) if fs.isfile(p))
        if not paths:
            raise InputError(f"{text} matches no file")
        yield from (_file(fs, p, _name(fs, p)) for p in paths)
    elif fs.isdir(path):
        paths = sorted(p for p in fs.find(path) if not _is_hidden(p, path))
        tables = _link_tables([p for p in paths if not p.endswith(".txt")])
        pictures = sum(_suffix(p) in PICTURES for p in paths)
        # Sets on a hub have a picture or two beside their tables.
        if tables and pictures >= 10 * len(tables):
            raise InputError(
                f"{text} holds {pictures:,} pictures and a table, {posixpath.basename(tables[0])}: "
                "name the table to read it, or move it elsewhere to read the pictures"
            )
        if tables:
            yield from (_file(fs, p, _name(fs, p)) for p in tables)
        elif pictures:
            yield PictureFolder(_name(fs, path), fs, path)
        elif texts := _link_tables(paths):
            yield from (_file(fs, p, _name(fs, p)) for p in texts)
        else:
            raise InputError(
                f"{text} holds neither link tables ({', '.join(FORMATS)}) nor pictures"
            )
    elif fs.exists(path):
        yield _file(fs, path, _name(fs, path))
    else:
        raise InputError(f"{text} is not there: name a file, a folder, a glob or a URL")


def _file(fs: Any, path: str, name: str) -> SourceFile:
    clean = urllib.parse.urlsplit(path).path if "://" in path else path
    stem, compression = clean, None
    if _suffix(clean) in COMPRESSIONS:
        stem, compression = clean.rpartition(".")[0], COMPRESSIONS[_suffix(clean)]
    info, told, has_ranges = _ask(fs, path, name)
    size = info.get("size") if told is None else told
    size = -1 if size is None else int(size)
    form = FORMATS.get(_suffix(stem)) or _sniff(fs, path, size if has_ranges else 0, name)
    return SourceFile(
        name,
        fs,
        path,
        form,
        compression,
        size,
        identity=_identity(fs, path, size, info),
        checksum=_checksum(info),
        etag=str(info.get("ETag") or ""),
        has_ranges=has_ranges,
    )


def _ask(fs: Any, path: str, name: str) -> tuple[dict[str, Any], int | None, bool]:
    """What a file system says of a file, the size that a range tells, whether there are ranges."""
    why = ""
    for _ in tries():
        try:
            info: dict[str, Any] = fs.info(path)
            return (info, *(probe(fs, path) if is_http(fs) else (None, True)))
        except remote_errors() as error:
            why = give_up_or_say(error, name)
    raise InputError(f"{name} cannot be read: {why}")


def _sniff(fs: Any, path: str, size: int, name: str) -> str:
    if size > 12 and fs.cat_file(path, start=0, end=4)[:4] == b"PAR1":
        return "parquet"
    raise InputError(
        f"{name}: its format is unknown; known are {', '.join(FORMATS)}, each also .gz or .zst"
    )


def _identity(fs: Any, path: str, size: int, info: dict[str, Any]) -> str:
    for stamp in ("sha256", "ETag", "etag", "blob_id", "Last-Modified"):
        if info.get(stamp):
            return f"{size}:{info[stamp]}".replace('"', "")
    if not _is_local(fs):
        return f"{size}:{info.get('mtime') or info.get('created') or ''}"
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        if size <= WHOLE_HASH_BYTES:
            while block := file.read(SAMPLE_BYTES):
                digest.update(block)
            return f"{size}:{digest.hexdigest()[:32]}"
        for offset in (0, size // 2, size - SAMPLE_BYTES):
            file.seek(offset)
            digest.update(file.read(SAMPLE_BYTES))
    return f"{size}:{digest.hexdigest()[:32]}:{info['mtime']}"


def _checksum(info: dict[str, Any]) -> str | None:
    """The sha256 or md5 that a server tells of a file, in hex.

    An ETag counts where it is quoted hex of 64 digits (the hub) or 32 (S3, one part).
    """
    lfs = info.get("lfs")
    told = (lfs or {}).get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    tag = str(info.get("ETag") or "").removeprefix("W/").strip('"').lower()
    if told is None and re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", tag):
        told = tag
    return told


def _link_tables(paths: Sequence[str]) -> list[str]:
    def is_table(path: str) -> bool:
        stem, _, last = path.rpartition(".")
        return (_suffix(stem) if last in COMPRESSIONS else last.lower()) in FORMATS

    return sorted(path for path in paths if is_table(path))


def _is_hidden(path: str, below: str) -> bool:
    return any(part[:1] in "._" for part in path[len(below) :].strip("/").split("/"))


def _name(fs: Any, path: str) -> str:
    return path if _is_local(fs) else str(fs.unstrip_protocol(path))


def _suffix(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[2].lower()


def _is_local(fs: Any) -> bool:
    protocols = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    return "file" in protocols
