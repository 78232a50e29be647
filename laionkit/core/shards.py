"""Webdataset shards: tars of ``KEY.ext`` members, written so that equal samples give equal bytes.

The writer is strict (rows in key order, mtime 0, fixed owner); core/tars.py reads any tar.
"""

import itertools
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laionkit.core.ahead import Behind
from laionkit.core.errors import InputError
from laionkit.core.files import Folder, HashingFile
from laionkit.core.records import ShardRecord, StageRecords
from laionkit.core.schemas import SHARD_RECORDS

_BLOCK = 512
_ZERO_BLOCK = bytes(_BLOCK)
_PADDING = [bytes(size) for size in range(_BLOCK)]
_WRITE_BYTES = 1 << 20


class ShardWriter:
    """Writes samples into one open tar, keys in ascending order unless `ordered` is False."""

    def __init__(
        self, file: HashingFile, *, ordered: bool = True, behind: Behind | None = None
    ) -> None:
        """Write into `file`, by way of `behind` where it is given; the caller owns both."""
        self._ordered, self._behind = ordered, behind
        self._file, self._size = file, 0
        self._last = ""
        # What waits to be written in one piece: hashing and writing run long outside Python's lock.
        self._waiting = memoryview(bytearray(_WRITE_BYTES))
        self._spare = memoryview(bytearray(_WRITE_BYTES)) if behind else self._waiting
        self._filled = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> int:
        """Add one sample: extension → bytes, in the order given; where the first one's bytes lie.

        Raises InputError on disorder.
        """
        if self._ordered and key <= self._last:
            raise InputError(f"key {key} does not come after {self._last}: shards are in key order")
        self._last, offset = key, self._size + self._filled + _BLOCK
        for extension, data in members.items():
            padding = -len(data) % _BLOCK
            room = self.room(_BLOCK + len(data) + padding)
            room[:_BLOCK] = _header(f"{key}.{extension}", len(data))
            room[_BLOCK : _BLOCK + len(data)] = data
            room[_BLOCK + len(data) :] = _PADDING[padding]
        return offset

    def room(self, size: int) -> memoryview:
        """The next `size` bytes of the tar, to be filled before the next call."""
        if self._filled + size > len(self._waiting):
            self._flush()
            if size > len(self._waiting):
                self._waiting = memoryview(bytearray(size))
        start, self._filled = self._filled, self._filled + size
        return self._waiting[start : self._filled]

    def close(self) -> None:
        """Write the tar's end: two empty blocks, and up to a whole record as tar does."""
        self._flush()
        if self._behind is not None:
            self._behind.wait()
        end = 2 * _BLOCK
        self._file.write(bytes(end + -(self._size + end) % tarfile.RECORDSIZE))

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


def sample_frames(
    keys: Sequence[str],
    extensions: Sequence[str],
    sizes: Sequence[int],
    others: Mapping[str, Sequence[bytes]],
) -> Iterator[tuple[bytes, memoryview]]:
    """What stands before and behind each sample's first member in a tar.

    Before it its header; behind it its padding, and the `others` whole (extension → bytes of each
    sample).
    """
    heads = _headers(list(map(".".join, zip(keys, extensions, strict=True))), sizes)
    columns: list[Sequence[bytes]] = [_paddings(sizes)]
    for extension, data in others.items():
        lengths = list(map(len, data))
        names = [f"{key}.{extension}" for key in keys]
        columns += [_headers(names, lengths), data, _paddings(lengths)]
    # One join for all samples costs a quarter of one for each.
    behind = memoryview(b"".join(itertools.chain.from_iterable(zip(*columns, strict=True))))
    start = 0
    for head, *parts in zip(heads, *(map(len, column) for column in columns), strict=True):
        end = start + sum(parts)
        yield head, behind[start:end]
        start = end


def _paddings(sizes: Sequence[int]) -> list[bytes]:
    """What fills each member's last block."""
    return [_PADDING[-size % _BLOCK] for size in sizes]


def _headers(names: Sequence[str], sizes: Sequence[int]) -> list[bytes]:
    """The headers of plain files, as `_header` writes each."""
    encoded = [name.encode() for name in names]
    if max(map(len, encoded), default=0) > 100 or max(sizes, default=0) >= 8**11:
        return list(map(_header, names, sizes))
    name_NB = np.array(encoded, "S100")[:, None].view(np.uint8)
    size_NB = _octal(np.array(sizes, np.int64), 11)
    sum_N = _EMPTY_SUM + name_NB.sum(axis=1, dtype=np.int64) + size_NB.sum(axis=1)
    head_NB = np.tile(np.frombuffer(_EMPTY_HEADER, np.uint8), (len(names), 1))
    head_NB[:, :100], head_NB[:, 124:135] = name_NB, size_NB
    head_NB[:, 148:154], head_NB[:, 154] = _octal(sum_N, 6), 0
    found: list[bytes] = head_NB.view(f"V{_BLOCK}").ravel().tolist()
    return found


def _octal(number_N: NDArray[np.int64], digits: int) -> NDArray[np.int64]:
    """Numbers as octal digits in ASCII, [N, digits]."""
    return (number_N[:, None] >> 3 * np.arange(digits - 1, -1, -1)) % 8 + ord("0")


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


@dataclass(frozen=True)
class ShardRef:
    """One finished image shard of a dataset: its own, or an adopted one.

    `tar` and `table` are paths that ``dataset.open`` takes, and so is `places` (core/places.py)
    where the tar's were noted; `content` names the bytes.
    """

    name: str
    tar: str
    table: str
    samples: int
    content: str
    tar_bytes: int
    places: str = ""

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
            places=record.files["places"].path if "places" in record.files else "",
        )


def list_shards(dataset: Folder) -> list[ShardRef]:
    """Every finished image shard, in name order; fetched and adopted ones are recorded alike."""
    return [ShardRef.of(record) for record in StageRecords(dataset, SHARD_RECORDS).all()]
