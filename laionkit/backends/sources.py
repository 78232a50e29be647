"""Where links come from: what a SOURCE argument names, file by file, and what identifies its bytes.

A source is a file, a folder, a glob, ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``, ``https://``
or any other fsspec URL. A folder holds link tables or, where there are none, pictures.
"""

import contextlib
import hashlib
import io
import os
import re
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import aiohttp
import fsspec
import pyarrow as pa

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
READ_TRIES = 5
BUFFER_BYTES = 4 << 20


def _remote_errors() -> tuple[type[Exception], ...]:
    """What file systems raise where a file cannot be read."""
    found: tuple[type[Exception], ...] = (OSError, aiohttp.ClientError)
    with contextlib.suppress(ImportError):
        from botocore.exceptions import BotoCoreError, ClientError

        found += (BotoCoreError, ClientError)
    return found


REMOTE_ERRORS = _remote_errors()


@dataclass(frozen=True)
class SourceFile:
    """One file of links: its name in records, where it lies, how it is written.

    `name` is the absolute path or URL (an ``hf://`` one with its revision pinned). `identity`
    names its bytes; `checksum` is their sha256 or md5 in hex where the server tells it.
    """

    name: str
    fs: Any = field(repr=False)
    path: str
    format: str
    compression: str | None
    size: int
    identity: str
    checksum: str | None = None

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
        remote = RangeFile(self.fs, self.path, self.size, self.name)
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

    Raises InputError for what is not there, cannot be read or is of no known format.
    """
    found: dict[str, Source] = {}
    for text in sources:
        for source in _find(text):
            found.setdefault(source.name, source)
    return list(found.values())


class RangeFile(io.RawIOBase):
    """A remote file read by byte ranges, each tried again where the connection was cut.

    `bytes_read` counts what came over the network.
    """

    def __init__(self, fs: Any, path: str, size: int, name: str) -> None:
        """Read `path` of `fs`, which has `size` bytes."""
        super().__init__()
        self.fs, self.path, self.length, self.name = fs, path, size, name
        self.position = 0
        self.bytes_read = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes."""
        end = min(self.length, self.position + len(buffer))
        if end <= self.position:
            return 0
        data = self._range(self.position, end)
        buffer[: len(data)] = data
        self.position = end
        return len(data)

    def _range(self, start: int, end: int) -> bytes:
        wanted = end - start
        for attempt in range(READ_TRIES):
            try:
                data: bytes = self.fs.cat_file(self.path, start=start, end=end)
            except REMOTE_ERRORS as error:
                why = str(error) or type(error).__name__
            else:
                self.bytes_read += len(data)
                if len(data) == wanted:
                    return data
                if len(data) > wanted:
                    raise InputError(
                        f"{self.name}: the server sends no ranges; add --download FOLDER"
                    )
                why = f"{len(data)} of {wanted} bytes came"
            time.sleep(min(8.0, 0.2 * 2**attempt))
        raise InputError(f"{self.name}: bytes {start}-{end} cannot be read: {why}")


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
    except REMOTE_ERRORS as error:
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
        if tables:
            yield from (_file(fs, p, _name(fs, p)) for p in tables)
        elif any(_suffix(p) in PICTURES for p in paths):
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
    try:
        info = fs.info(path)
    except REMOTE_ERRORS as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} cannot be read: {why}") from error
    if info.get("size") is None:
        raise InputError(f"{name}: the server does not say its size; add --download FOLDER")
    size = int(info["size"])
    form = FORMATS.get(_suffix(stem)) or _sniff(fs, path, size, name)
    identity = _identity(fs, path, size, info)
    return SourceFile(name, fs, path, form, compression, size, identity, _checksum(info))


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
