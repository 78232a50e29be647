"""Webdataset shards: tars of ``KEY.ext`` members, written so that equal samples give equal bytes.

The writer is strict (rows in key order, mtime 0, fixed owner); the reader takes any tar of
img2dataset or webdataset, members in any order, and keeps the good samples of a broken one.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from laionkit.core.ahead import OneAhead
from laionkit.core.errors import InputError
from laionkit.core.files import Folder, HashingFile
from laionkit.core.records import ShardRecord, StageRecords
from laionkit.core.schemas import SHARD_RECORDS

_BLOCK = 512
_ZERO_BLOCK = bytes(_BLOCK)
_WRITE_BYTES = 1 << 20
_HEADERS_AT_ONCE = 8192
_AHEAD = 8 * _BLOCK
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_IMAGE_RANK = {extension: rank for rank, extension in enumerate(IMAGE_EXTENSIONS)}


class ShardWriter:
    """Writes samples into one open tar, keys in ascending order unless `ordered` is False."""

    def __init__(
        self, file: HashingFile, *, ordered: bool = True, behind: OneAhead | None = None
    ) -> None:
        """Write into `file`, by way of `behind` where it is given; the caller owns both."""
        self._ordered, self._behind = ordered, behind
        self._file, self._size = file, 0
        self._last = ""
        # What waits to be written in one piece: hashing and writing run long outside Python's lock.
        self._waiting = memoryview(bytearray(_WRITE_BYTES))
        self._spare = memoryview(bytearray(_WRITE_BYTES)) if behind else self._waiting
        self._filled = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add one sample: extension → bytes, in the order given. Raises InputError on disorder."""
        self._take_up(key)
        self.go_on(members)

    def begin(self, key: str, extension: str, size: int) -> memoryview:
        """Begin a sample with a member of `size` bytes: the room that they are to be put into.

        To be filled before the next call. Raises InputError on disorder.
        """
        self._take_up(key)
        return self._member(extension, size)

    def go_on(self, members: Mapping[str, bytes]) -> None:
        """Add members to the sample that was begun."""
        for extension, data in members.items():
            self._member(extension, len(data))[:] = data

    def close(self) -> None:
        """Write the tar's end: two empty blocks, and up to a whole record as tar does."""
        self._flush()
        if self._behind is not None:
            self._behind.wait()
        end = 2 * _BLOCK
        self._file.write(bytes(end + -(self._size + end) % tarfile.RECORDSIZE))

    def _take_up(self, key: str) -> None:
        if self._ordered and key <= self._last:
            raise InputError(f"key {key} does not come after {self._last}: shards are in key order")
        self._last = key

    def _member(self, extension: str, size: int) -> memoryview:
        """Write a member's header and padding; give the room between."""
        padded = size + -size % _BLOCK
        room = self._room(_BLOCK + padded)
        room[:_BLOCK] = _header(f"{self._last}.{extension}", size)
        room[_BLOCK + size :] = _ZERO_BLOCK[: padded - size]
        return room[_BLOCK : _BLOCK + size]

    def _room(self, size: int) -> memoryview:
        """The next `size` bytes of what waits."""
        if self._filled + size > len(self._waiting):
            self._flush()
            if size > len(self._waiting):
                self._waiting = memoryview(bytearray(size))
        start, self._filled = self._filled, self._filled + size
        return self._waiting[start : self._filled]

    def _flush(self) -> None:
        """Write what waits."""
        full = self._waiting[: self._filled]
        self._size, self._filled = self._size + len(full), 0
        if self._behind is None:
            self._file.write(full)
        else:
            self._behind.hand_over(self._file.write, full)
            self._waiting, self._spare = self._spare, self._waiting

    def __enter__(self) -> "ShardWriter":
        """Use as a context: the end is written only where nothing failed."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Write the end unless an exception is on its way."""
        if kind is None:
            self.close()


def _header(name: str, size: int) -> bytes:
    """The header of a plain file: read-only, no time, no owner."""
    encoded = name.encode()
    if len(encoded) > 100 or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o444, 0
        return info.tobuf(tarfile.USTAR_FORMAT)
    length = b"%011o" % size
    checksum = _EMPTY_SUM + sum(encoded + length)
    return b"%b%b%b%b%b%06o\0%b" % (
        encoded,
        _ZERO_BLOCK[: 100 - len(encoded)],
        _BEFORE_SIZE,
        length,
        _BEFORE_SUM,
        checksum,
        _AFTER_SUM,
    )


def _empty_header() -> bytes:
    """A header without name, size and checksum, as ``tarfile`` spells the rest."""
    info = tarfile.TarInfo("")
    info.mode, info.mtime = 0o444, 0
    head = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    head[124:135] = bytes(11)
    head[148:156] = b" " * 8
    return bytes(head)


_EMPTY_HEADER = _empty_header()
_EMPTY_SUM = sum(_EMPTY_HEADER)
_BEFORE_SIZE, _BEFORE_SUM = _EMPTY_HEADER[100:124], _EMPTY_HEADER[135:148]
_AFTER_SUM = _EMPTY_HEADER[155:]


class Member(NamedTuple):
    """Where a member's bytes lie in its tar."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardContents:
    """The table of contents of a tar: key → extension → place. `damage` says where it broke."""

    samples: dict[str, dict[str, Member]]
    damage: str = ""


def read_contents(file: BinaryIO) -> ShardContents:
    """List a seekable tar's samples in key order, whatever the order of its members.

    A key is the member's name up to its base name's first dot, as webdataset splits it. A broken
    tar yields what comes before the break, and says so in `damage`.
    """
    samples: dict[str, dict[str, Member]] = {}
    damage = ""
    plain = _plain_members(file)
    if plain is not None:
        for name, place in zip(*plain, strict=True):
            key, extension = split_member(name)
            samples.setdefault(key, {})[extension] = Member(*place)
        return ShardContents({key: samples[key] for key in sorted(samples)})
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.isfile():
                    key, extension = split_member(info.name)
                    samples.setdefault(key, {})[extension] = Member(info.offset_data, info.size)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                damage = "the tar has no end mark: it was cut"
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        damage = str(error) or type(error).__name__
    size = file.seek(0, io.SEEK_END)
    cut = {k for k, exts in samples.items() if any(m.offset + m.size > size for m in exts.values())}
    if cut:
        damage = damage or "the file ends inside a member"
    kept = {key: samples[key] for key in sorted(samples) if key not in cut}
    return ShardContents(kept, damage)


# Where each picture of a tar lies in it.
IMAGES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_ext", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
    ]
)


def read_images(file: BinaryIO) -> tuple[pa.Table, str]:
    """Each sample's picture in a seekable tar (IMAGES_SCHEMA), and the damage."""
    plain = _plain_members(file)
    if plain is None:
        contents = read_contents(file)
        images = ((key, image_member(members)) for key, members in contents.samples.items())
        return _image_table([(key, i[0], *i[1]) for key, i in images if i]), contents.damage
    found: dict[str, tuple[str, str, int, int]] = {}
    for name, place in zip(*plain, strict=True):
        if name.lower().endswith(IMAGE_EXTENSIONS):
            key, extension = split_member(name)
            rank = _IMAGE_RANK.get(extension)
            if rank is not None and (key not in found or rank <= _IMAGE_RANK[found[key][1]]):
                found[key] = key, extension, *place
    return _image_table(list(found.values())), ""


def _image_table(rows: list[tuple[str, str, int, int]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(IMAGES_SCHEMA)
    return pa.table(list(map(list, columns)), schema=IMAGES_SCHEMA)


def _plain_members(file: BinaryIO) -> tuple[list[str], list[tuple[int, int]]] | None:
    """Names and places (offset, size) in a whole tar of plain files, faster than ``tarfile``.

    None where anything else is met (long names, links, damage): then ``tarfile`` judges.
    """
    size = file.seek(0, io.SEEK_END)
    read_ahead = _reader(file)
    names: list[str] = []
    places: list[tuple[int, int]] = []
    headers: list[bytes] = []
    offset, start, ahead = 0, 0, b""
    while offset + _BLOCK <= size:
        header = ahead[offset - start : offset - start + _BLOCK]
        if len(header) < _BLOCK:
            start, ahead = offset, read_ahead(offset)
            header = ahead[:_BLOCK]
        ended = header == _ZERO_BLOCK
        if ended or len(headers) == _HEADERS_AT_ONCE:
            some = _plain_names(headers)
            if some is None:
                return None
            names += some
            headers = []
        if ended:
            return names, places
        try:
            length = int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError:
            return None
        headers.append(header)
        offset += _BLOCK
        places.append((offset, length))
        offset += length + -length % _BLOCK
    return None


def _reader(file: BinaryIO) -> Callable[[int], bytes]:
    """Read the block at an offset and what lies near behind it.

    A caption and its neighbours come with one read; a picture is passed over.
    """
    try:
        number = file.fileno()
    except (AttributeError, OSError):
        return lambda offset: file.read(_AHEAD) if file.seek(offset) >= 0 else b""
    return lambda offset: os.pread(number, _AHEAD, offset)


def _plain_names(headers: list[bytes]) -> list[str] | None:
    """The names in headers of plain files; None where one is of another kind or does not sum up."""
    if not headers:
        return []
    header_NB = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, _BLOCK)
    kind_N, prefix_N = header_NB[:, 156], header_NB[:, 345]
    if prefix_N.any() or not np.isin(kind_N, (0, ord("0"))).all():
        return None
    # The checksum is taken with blanks in its own place; it is stated as six octal digits.
    stated_NB = header_NB[:, 148:156]
    sum_N = header_NB.sum(axis=1, dtype=np.int64) - stated_NB.sum(axis=1) + 8 * ord(" ")
    digit_N6 = header_NB[:, 148:154].astype(np.int64) - ord("0")
    stated_N = digit_N6 @ (8 ** np.arange(5, -1, -1))
    if (digit_N6 < 0).any() or (digit_N6 > 7).any() or not np.array_equal(sum_N, stated_N):
        return None
    try:
        names = np.ascontiguousarray(header_NB[:, :100]).view("S100").ravel().tolist()
        return [name.decode() for name in names]
    except ValueError:
        return None


def read_member(file: BinaryIO, member: Member) -> bytes:
    """The bytes of one member."""
    file.seek(member.offset)
    return file.read(member.size)


def split_member(name: str) -> tuple[str, str]:
    """Split a member's name into key and extension at its base name's first dot.

    >>> split_member("a/b/000010005.seg.png")
    ('a/b/000010005', 'seg.png')
    """
    head, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return head + slash + stem, extension.lower()


def image_member(members: Mapping[str, Member]) -> tuple[str, Member] | None:
    """The member that holds the picture, with its extension; None where there is none."""
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            return extension, members[extension]
    return None


@dataclass(frozen=True)
class ShardRef:
    """One finished image shard of a dataset: its own, or an adopted one.

    `tar` and `table` are paths that ``dataset.open`` takes; `content` names the bytes.
    """

    name: str
    tar: str
    table: str
    samples: int
    content: str
    tar_bytes: int

    @classmethod
    def of(cls, record: ShardRecord) -> "ShardRef":
        """The reference a fetch or adopt record stands for."""
        return cls(
            name=record.shard,
            tar=record.files["tar"].path,
            table=record.files["table"].path,
            samples=record.counts.ok,
            content=record.content(),
            tar_bytes=record.files["tar"].size,
        )


def list_shards(dataset: Folder) -> list[ShardRef]:
    """Every finished image shard, in name order; fetched and adopted ones are recorded alike."""
    return [ShardRef.of(record) for record in StageRecords(dataset, SHARD_RECORDS).all()]


def iterate_samples(
    file: BinaryIO, contents: ShardContents
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, extension → bytes) for every sample, in key order."""
    for key, members in contents.samples.items():
        yield key, {extension: read_member(file, m) for extension, m in members.items()}
