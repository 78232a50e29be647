"""Where the pictures that stay lie in the dataset's tars, and reading them from there."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
from fsspec.utils import merge_offset_ranges

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.places import noted_places, still_hold
from laionkit.core.records import StageRecords
from laionkit.core.schemas import SHARD_RECORDS
from laionkit.core.shard_scan import SHARD
from laionkit.core.shards import ShardRef, list_shards
from laionkit.core.tars import IMAGES_SCHEMA, read_images
from laionkit.ops.predicates import quote_text
from laionkit.stages.subset.selection import Selection

IN_TARS_SCHEMA = IMAGES_SCHEMA.append(pa.field(SHARD, pa.string()))
PLACE_COLUMNS = tuple(IMAGES_SCHEMA.names[1:])
VIEW_COLUMNS = ("key", "shard", *PLACE_COLUMNS, "laionkit_txt", "laionkit_json")
MAX_OPEN_TARS = 128
SHARDS_AT_ONCE = 64
# Pictures read at a time; on an object store ranges so near are one, up to so many bytes.
READ_AHEAD = 128
MAX_GAP = 64 << 10
MAX_RANGE = 8 << 20


def locate(selection: Selection, dataset: Folder) -> None:
    """Find where each picture that stays lies in its tar; drop what its tar does not hold.

    Raises InputError for a tar that is whole and not the one that was recorded.
    """
    table = selection.table
    refs = {ref.name: ref for ref in list_shards(dataset)}
    shards, damages = selection.shards(), {}
    for start in range(0, max(1, len(shards)), SHARDS_AT_ONCE):
        found, some = [IN_TARS_SCHEMA.empty_table()], shards[start : start + SHARDS_AT_ONCE]
        for shard in some:
            images, damages[shard] = _images(refs[shard], dataset)
            found.append(images.append_column(SHARD, pa.repeat(shard, len(images))))
        first, last = map(quote_text, (some[0], some[-1]) if some else ("", ""))
        table.insert(
            "places",
            pa.concat_tables(found),
            f"SELECT t.key, t.shard, {', '.join(PLACE_COLUMNS)} FROM laionkit_rows t JOIN judged j "
            "ON j.key = t.key AND j.shard = t.shard "
            f"WHERE j.code = 0 AND j.shard BETWEEN {first} AND {last}",
        )
    lost = table.arrow(
        "SELECT key, shard FROM judged ANTI JOIN places USING (key) WHERE code = 0 ORDER BY ALL"
    ).to_pylist()
    for reason, damaged in (("corrupt_tar", True), ("member_missing", False)):
        gone = [row for row in lost if bool(damages.get(row[SHARD])) is damaged]
        if gone:
            keys = {"key": [r["key"] for r in gone], "value": [damages[r[SHARD]] for r in gone]}
            selection.drop("picture in its tar", reason, pa.table(keys))


def _images(ref: ShardRef, dataset: Folder) -> tuple[pa.Table, str]:
    """Where a tar's pictures lie (IMAGES_SCHEMA), as noted or by walking through it; the damage."""
    noted = noted_places(dataset, ref)
    if noted is not None and still_hold(dataset, ref, noted):
        return noted, ""
    with dataset.open(ref.tar) as file:
        images, damage = read_images(file)
        size = file.seek(0, os.SEEK_END)
    if not damage and (size != ref.tar_bytes or noted is not None):
        raise InputError(
            f"{ref.tar} has {size:,} bytes and had {ref.tar_bytes:,} when it was recorded, or "
            "other members: it was replaced since, and scores and index may not be of its "
            "pictures. Put the old one back, or make the dataset anew from this one"
        )
    return images, damage


def view_cells(rows: pa.Table) -> list[list[Any]]:
    """VIEW_COLUMNS of rows as lists, caption and JSON in bytes."""
    told = ("laionkit_txt", "laionkit_json")
    return [
        (rows.column(name).cast(pa.binary()) if name in told else rows.column(name)).to_pylist()
        for name in VIEW_COLUMNS
    ]


class Pictures:
    """Reads pictures out of the dataset's tars, of which it holds the last few open."""

    def __init__(self, dataset: Folder) -> None:
        self._dataset = dataset
        self.is_local = dataset.is_local
        self._records = StageRecords(dataset, SHARD_RECORDS)
        self._tars: dict[str, str] = {}
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def samples(self, rows: pa.Table) -> Iterator[tuple[str, str, bytes, bytes, bytes]]:
        """Key, extension, picture, caption and JSON of each row of a view."""
        cells = view_cells(rows)
        for start in range(0, len(rows), READ_AHEAD):
            part = [column[start : start + READ_AHEAD] for column in cells]
            keys, shards, extensions, offsets, sizes, texts, lines = part
            images = self.read_all(list(zip(shards, offsets, sizes, strict=True)))
            yield from zip(keys, extensions, images, texts, lines, strict=True)

    def read_all(self, places: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes of several pictures, (shard, offset, size) each.

        On an object store they are asked for together, neighbours in one request.
        """
        if self.is_local:
            return [self.read(*place) for place in places]
        paths = [self._dataset.at(self._tar(shard)) for shard, _, _ in places]
        starts = [offset for _, offset, _ in places]
        ends = [offset + size for _, offset, size in places]
        ranges = merge_offset_ranges(paths, starts, ends, max_gap=MAX_GAP, max_block=MAX_RANGE)
        blocks: dict[str, list[tuple[int, bytes]]] = {}
        found = self._dataset.fs.cat_ranges(*map(list, ranges), on_error="raise")
        for path, start, data in zip(ranges[0], ranges[1], found, strict=True):
            blocks.setdefault(path, []).append((start, data))
        pictures = []
        for path, start, end in zip(paths, starts, ends, strict=True):
            around = (b for b in blocks[path] if b[0] <= start and end <= b[0] + len(b[1]))
            at, data = next(around, (0, b""))
            if not data:
                raise InputError(f"{path} ended early: it changed while it was read")
            pictures.append(data[start - at : end - at])
        return pictures

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """The bytes of one picture. Raises InputError where the tar is shorter than it was."""
        file = self._file(shard)
        if self.is_local:
            data = os.pread(file.fileno(), size, offset)
        else:
            file.seek(offset)
            data = file.read(size)
        self._check(shard, len(data) == size)
        return data

    def read_into(self, room: memoryview, shard: str, offset: int) -> None:
        """Put the bytes of one picture of a local dataset into `room`, without a copy between.

        Raises InputError where the tar is shorter than it was.
        """
        self._check(shard, os.preadv(self._file(shard).fileno(), [room], offset) == len(room))

    def _check(self, shard: str, whole: bool) -> None:
        if not whole:
            raise InputError(f"{self._tar(shard)} ended early: it changed while it was read")

    def _file(self, shard: str) -> BinaryIO:
        """A tar held open."""
        file = self._open.get(shard)
        if file is None:
            file = self._open[shard] = self._dataset.open(self._tar(shard))
            if len(self._open) > MAX_OPEN_TARS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        return file

    def _tar(self, shard: str) -> str:
        if shard not in self._tars:
            self._tars[shard] = ShardRef.of(self._records.read(shard)).tar
        return self._tars[shard]

    def close(self) -> None:
        """Close every tar that is open."""
        for file in self._open.values():
            file.close()
