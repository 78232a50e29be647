"""What lies where in a webdataset tar: any of img2dataset or webdataset, members in any order.

Nothing is unpacked, and a name is only ever a name. The good samples of a broken tar are kept.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

BLOCK_BYTES = tarfile.BLOCKSIZE
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_HEADERS_AT_ONCE = 8192
_AHEAD = 8 * BLOCK_BYTES
# More than any caption; a member that calls itself one and holds gigabytes must not fill memory.
_MAX_TEXT_BYTES = 1 << 20
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_IMAGE_RANK = {extension: rank for rank, extension in enumerate(IMAGE_EXTENSIONS)}


class Member(NamedTuple):
    """Where a member's bytes lie in its tar."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardContents:
    """The table of contents of a tar: key → extension → place.

    `damage` says where it broke, `cut` which samples lie across the break; `repeated` is the first
    member that comes twice, of which the later one counts.
    """

    samples: dict[str, dict[str, Member]]
    damage: str = ""
    cut: tuple[str, ...] = ()
    repeated: str = ""


def read_contents(file: BinaryIO) -> ShardContents:
    """List a seekable tar's samples in key order, whatever the order of its members.

    A key is the member's name up to its base name's first dot, as webdataset splits it; names
    without a key or an extension (README, ._a.jpg) are no part of a sample. A link or a sparse file
    has no bytes of its own: its sample is there without it. A broken tar yields what comes before
    the break, and says so in `damage`.
    """
    plain = _plain_members(file)
    if plain is not None:
        return _contents((name, Member(*place)) for name, *place in zip(*plain, strict=True))
    found: list[tuple[str, Member | None]] = []
    damage = ""
    file.seek(0)
    try:
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace"
        ) as tar:
            for info in tar:
                if not info.isdir():
                    has_bytes = info.isreg() and not info.issparse()
                    place = Member(info.offset_data, info.size) if has_bytes else None
                    found.append((info.name, place))
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                damage = "the tar has no end mark: it was cut"
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        damage = str(error) or type(error).__name__
    return _without_cut(_contents(found), damage, file.seek(0, io.SEEK_END))


def _contents(members: Iterable[tuple[str, Member | None]]) -> ShardContents:
    """Members as samples in key order; one without a place adds nothing but its sample's name."""
    samples: dict[str, dict[str, Member]] = {}
    repeated = ""
    for name, place in members:
        key, extension = split_member(name)
        if not extension or not key or key.endswith("/"):
            continue
        sample = samples.setdefault(key, {})
        if place is not None:
            if extension in sample and not repeated:
                repeated = name
            sample[extension] = place
    return ShardContents({key: samples[key] for key in sorted(samples)}, repeated=repeated)


def _without_cut(contents: ShardContents, damage: str, size: int) -> ShardContents:
    """Set apart the samples that reach beyond the end of a file of `size` bytes."""
    cut = tuple(
        key
        for key, members in contents.samples.items()
        if any(not 0 <= m.offset <= m.offset + m.size <= size for m in members.values())
    )
    kept = {key: members for key, members in contents.samples.items() if key not in set(cut)}
    damage = damage or ("the file ends inside a member" if cut else "")
    return ShardContents(kept, damage, cut, contents.repeated)


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
    plain = plain_images(file)
    if plain is not None:
        return plain, ""
    contents = read_contents(file)
    images = ((key, image_member(members)) for key, members in contents.samples.items())
    return _image_table([(key, i[0], *i[1]) for key, i in images if i]), contents.damage


def plain_images(file: BinaryIO) -> pa.Table | None:
    """Each sample's picture (IMAGES_SCHEMA) in a whole tar of plain files; None for any other."""
    plain = _plain_members(file)
    if plain is None:
        return None
    found: dict[str, tuple[str, str, int, int]] = {}
    for name, offset, size in zip(*plain, strict=True):
        if name.lower().endswith(IMAGE_EXTENSIONS):
            key, extension = split_member(name)
            rank = _IMAGE_RANK.get(extension) if key and not key.endswith("/") else None
            if rank is not None and (key not in found or rank <= _IMAGE_RANK[found[key][1]]):
                found[key] = key, extension, offset, size
    return _image_table(list(found.values()))


def plain_headers(headers: Sequence[bytes]) -> list[tuple[str, str, int]] | None:
    """Key, extension and size in the header of each plain file; None if one is no such header."""
    names = _plain_names(headers) if set(map(len, headers)) <= {BLOCK_BYTES} else None
    if names is None:
        return None
    try:
        sizes = [int(header[124:135], 8) for header in headers]
    except ValueError:
        return None
    return [(*split_member(name), size) for name, size in zip(names, sizes, strict=True)]


def _image_table(rows: list[tuple[str, str, int, int]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(IMAGES_SCHEMA)
    return pa.table(list(map(list, columns)), schema=IMAGES_SCHEMA)


def _plain_members(file: BinaryIO) -> tuple[list[str], list[int], list[int]] | None:
    """Names, offsets and sizes in a whole tar of plain files, faster than ``tarfile``.

    None where anything else is met (long names, links, damage): then ``tarfile`` judges.
    """
    size = file.seek(0, io.SEEK_END)
    read_ahead = _reader(file)
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    headers: list[bytes] = []
    at, start, ahead, end = 0, 0, b"", 0  # `at` and `end` count from `start`
    while start + at + BLOCK_BYTES <= size:
        if at + BLOCK_BYTES > end:
            start += at
            ahead, at = read_ahead(start), 0
            end = len(ahead)
        header = ahead[at : at + BLOCK_BYTES]
        ended = header == _ZERO_BLOCK
        if ended or len(headers) == _HEADERS_AT_ONCE:
            some = _plain_names(headers)
            if some is None:
                return None
            names += some
            headers = []
        if ended:
            return names, offsets, sizes
        try:
            length = int(header[124:135], 8)
        except ValueError:
            return None
        if length < 0:
            return None
        headers.append(header)
        at += BLOCK_BYTES
        offsets.append(start + at)
        sizes.append(length)
        at += length + -length % BLOCK_BYTES
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


def _plain_names(headers: Sequence[bytes]) -> list[str] | None:
    """The names in headers of plain files; None where one is of another kind or does not sum up."""
    if not headers:
        return []
    header_NB = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK_BYTES)
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


def read_text(file: BinaryIO, member: Member) -> str:
    """A member as text, its first MiB at most; what is no UTF-8 becomes U+FFFD."""
    start = Member(member.offset, min(member.size, _MAX_TEXT_BYTES))
    return read_member(file, start).decode("utf-8", "replace")


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
