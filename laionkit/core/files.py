"""Files of a dataset on any fsspec URL, written so that a reader never sees half of one.

Local: a temporary name in the same folder, then a rename. Elsewhere: a local temporary file,
then one PUT. What is written is hashed on the way, so that nothing is read back for its record.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.errors import InputError


@dataclass(frozen=True)
class Written:
    """A finished file: its path as a record stores it, its size in bytes, its sha256."""

    path: str
    size: int
    sha256: str


@dataclass
class HashingFile:
    """A write-only binary file that hashes and counts what passes through."""

    file: IO[bytes]
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    closed: bool = False

    def write(self, data: bytes | memoryview) -> int:
        """Write, hash and count `data`."""
        self.digest.update(data)
        written = self.file.write(data)
        self.size += written
        return written

    def tell(self) -> int:
        """Position, which is what was written so far."""
        return self.size

    def flush(self) -> None:
        """Flush the file below."""
        self.file.flush()

    def close(self) -> None:
        """Do nothing: who opened the file closes it (parquet writers close what they are given)."""

    def writable(self) -> bool:
        """It is."""
        return True

    def readable(self) -> bool:
        """It is not."""
        return False

    def seekable(self) -> bool:
        """It is not: a hash has no way back."""
        return False


class Folder:
    """A folder on any fsspec URL. Names below are relative to it and use ``/``."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        """Open the folder at `url`; nothing is created or checked yet."""
        text = os.fspath(url)
        self.fs, root = fsspec.core.url_to_fs(text)
        self.root: str = root.rstrip("/") or "/"
        self.is_local: bool = "file" in (
            self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        )
        self.url: str = self.root if self.is_local else text.rstrip("/")

    def __str__(self) -> str:
        """The folder's URL, or its path where it is local."""
        return self.url

    def at(self, name: str) -> str:
        """The path of `name` on the file system. A full URL or absolute path stays as it is.

        Records of adopted data name files outside the dataset by absolute path or URL.
        """
        if name.startswith("/") or "://" in name:
            return str(self.fs._strip_protocol(name)) if "://" in name else name
        return f"{self.root}/{name}" if name else self.root

    def folder(self, name: str) -> "Folder":
        """The folder called `name` below this one."""
        below = Folder.__new__(Folder)
        below.fs, below.is_local = self.fs, self.is_local
        below.root, below.url = self.at(name), f"{self.url}/{name}"
        return below

    def local_path(self, name: str = "") -> Path:
        """The local path of `name`. Raises InputError where the folder is not local."""
        if not self.is_local:
            raise InputError(f"{self.url} is not on this machine; this step needs a local folder")
        return Path(self.at(name))

    def exists(self, name: str = "") -> bool:
        """Tell whether a file or folder is there."""
        return bool(self.fs.exists(self.at(name)))

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        return int(self.fs.size(self.at(name)))

    def names(self, below: str = "", suffix: str = "") -> list[str]:
        """Sorted base names of the files directly in `below` that end in `suffix`.

        Half-written files (their names begin with a dot) and folders are left out; a folder
        that is not there has no names.
        """
        try:
            entries = self.fs.ls(self.at(below), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        bases = (
            entry["name"].rstrip("/").rsplit("/", 1)[-1]
            for entry in entries
            if entry["type"] == "file"
        )
        return sorted(base for base in bases if base.endswith(suffix) and not base.startswith("."))

    def folders(self, below: str = "") -> list[str]:
        """Sorted base names of the folders directly in `below`."""
        try:
            entries = self.fs.ls(self.at(below), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(
            entry["name"].rstrip("/").rsplit("/", 1)[-1]
            for entry in entries
            if entry["type"] == "directory"
        )

    def walk(self) -> list[str]:
        """Sorted names of the files at any depth below, without hidden files and folders."""
        start = len(self.root.rstrip("/")) + 1
        found = (path[start:] for path in self.fs.find(self.root))
        return sorted(name for name in found if not f"/{name}".count("/."))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading. Raises InputError where it is missing or unreadable."""
        try:
            if self.is_local:
                return cast(BinaryIO, Path(self.at(name)).open("rb"))
            return cast(BinaryIO, self.fs.open(self.at(name), "rb"))
        except FileNotFoundError as error:
            raise InputError(f"{self.at(name)} is not there") from error
        except (PermissionError, IsADirectoryError) as error:
            why = error.strerror or error
            raise InputError(f"{self.at(name)} cannot be read: {why}") from error

    def read_bytes(self, name: str) -> bytes:
        """The whole of a file."""
        with self.open(name) as file:
            return file.read()

    def sha256(self, name: str) -> str:
        """Hash of a file's bytes, in hex."""
        digest = hashlib.sha256()
        with self.open(name) as file:
            while data := file.read(1 << 20):
                digest.update(data)
        return digest.hexdigest()

    def read_json(self, name: str) -> Any:
        """A JSON file's value. Raises InputError where it is no JSON."""
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise InputError(f"{self.at(name)} is not valid JSON: {error}") from error

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A parquet file as a table. Raises InputError where it is no parquet."""
        try:
            with self.open(name) as file:
                return pq.ParquetFile(file).read(columns=columns)
        except pa.ArrowInvalid as error:
            raise InputError(f"{self.at(name)} is not readable parquet: {error}") from error

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """Write a file that appears whole, under its name, or not at all."""
        target = self.at(name)
        if self.is_local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            partial = Path(target).with_name(f".{Path(target).name}.{os.getpid()}.tmp")
        else:
            handle, temporary = tempfile.mkstemp(prefix="laionkit-")
            os.close(handle)
            partial = Path(temporary)
        try:
            with partial.open("wb") as file:
                yield HashingFile(file)
            if self.is_local:
                partial.replace(target)
            else:
                self.fs.put_file(str(partial), target)
        finally:
            partial.unlink(missing_ok=True)

    def write_bytes(self, name: str, data: bytes) -> Written:
        """Write a small file whole."""
        with self.create(name) as file:
            file.write(data)
        return Written(name, file.size, file.digest.hexdigest())

    def write_json(self, name: str, value: Any) -> Written:
        """Write a JSON file, keys in the given order, so that equal values give equal bytes."""
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        return self.write_bytes(name, (text + "\n").encode())

    def write_table(self, name: str, table: pa.Table) -> Written:
        """Write a parquet file (zstd; equal tables give equal bytes)."""
        with self.create(name) as file:
            pq.write_table(table, file, compression="zstd")
        return Written(name, file.size, file.digest.hexdigest())

    def move(self, name: str, target: str) -> None:
        """Move a file or folder within this folder's file system."""
        if self.is_local:
            Path(self.at(target)).parent.mkdir(parents=True, exist_ok=True)
            Path(self.at(name)).replace(self.at(target))
        else:
            self.fs.mv(self.at(name), self.at(target), recursive=True)

    def remove(self, name: str) -> None:
        """Delete a file; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.at(name))
