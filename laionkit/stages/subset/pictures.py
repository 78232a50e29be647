"""Where the pictures that stay lie in the dataset's tars, and reading them from there."""

import itertools
import operator
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
from fsspec.utils import merge_offset_ranges

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.core.schemas import SHARD_RECORDS
from laionkit.core.shards import ShardRef, list_shards, read_images
from laionkit.ops.predicates import quote_text
from laionkit.stages.subset.selection import Selection

PLACE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_ext", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
    ]
)
PLACE_COLUMNS = ("image_ext", "image_offset", "image_size")
VIEW_COLUMNS = ("key", "shard", *PLACE_COLUMNS, "laionkit_txt", "laionkit_json")
MAX_OPEN_TARS = 128
SHARDS_AT_ONCE = 64
# Pictures read at a time; on an object store ranges so near are one, up to so many bytes.
READ_AHEAD = 128
MAX_GAP = 64 << 10
MAX_RANGE = 8 << 20


def locate(selection: Selection, dataset: Folder) -> None:
    """Find where each picture that stays lies in its tar; drop what its tar does not hold.

    Raises InputError where a tar is not the one that was recorded.
    """
    table = selection.table
    refs = {ref.name: ref for ref in list_shards(dataset)}
    table.insert("places", PLACE_SCHEMA.empty_table())
    shards = selection.shards()
    for start in range(0, len(shards), SHARDS_AT_ONCE):
        listed = ", ".join(map(quote_text, shards[start : start + SHARDS_AT_ONCE]))
        kept = table.arrow(
            f"SELECT shard, key FROM judged WHERE code = 0 AND shard IN ({listed}) ORDER BY ALL"
        ).to_pydict()
        places: list[_Place] = []
        lost: list[tuple[str, str]] = []
        rows = zip(kept["shard"], kept["key"], strict=True)
        for shard, wanted in itertools.groupby(rows, key=operator.itemgetter(0)):
            with dataset.open(refs[shard].tar) as file:
                images, damage = read_images(file)
            for _, key in wanted:
                if key in images:
                    extension, member = images[key]
                    places.append((key, extension, member.offset, member.size))
                else:
                    lost.append((key, damage))
        table.insert("places", _columns(places, PLACE_SCHEMA))
        for reason, gone in (
            ("corrupt_tar", [row for row in lost if row[1]]),
            ("member_missing", [row for row in lost if not row[1]]),
        ):
            if gone:
                selection.drop("picture in its tar", reason, _columns(gone, _LOST))


_Place = tuple[str, str, int, int]
_LOST = pa.schema([("key", pa.string()), ("value", pa.string())])


def _columns(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`."""
    columns = [list(cells) for cells in zip(*rows, strict=True)] or [[]] * len(schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


class Pictures:
    """Reads pictures out of the dataset's tars, of which it holds the last few open."""

    def __init__(self, dataset: Folder) -> None:
        self._dataset = dataset
        self._records = StageRecords(dataset, SHARD_RECORDS)
        self._tars: dict[str, str] = {}
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def samples(self, rows: pa.Table) -> Iterator[tuple[str, str, bytes, bytes, bytes]]:
        """Key, extension, picture, caption and JSON of each row of a view."""
        told = ("laionkit_txt", "laionkit_json")
        cells = [
            (rows.column(name).cast(pa.binary()) if name in told else rows.column(name)).to_pylist()
            for name in VIEW_COLUMNS
        ]
        for start in range(0, len(rows), READ_AHEAD):
            part = [column[start : start + READ_AHEAD] for column in cells]
            keys, shards, extensions, offsets, sizes, texts, lines = part
            images = self.read_all(list(zip(shards, offsets, sizes, strict=True)))
            yield from zip(keys, extensions, images, texts, lines, strict=True)

    def read_all(self, places: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes of several pictures, (shard, offset, size) each.

        On an object store they are asked for together, neighbours in one request.
        """
        if self._dataset.is_local:
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
        file = self._open.get(shard)
        if file is None:
            file = self._open[shard] = self._dataset.open(self._tar(shard))
            if len(self._open) > MAX_OPEN_TARS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        if self._dataset.is_local:
            data = os.pread(file.fileno(), size, offset)
        else:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise InputError(f"{self._tar(shard)} ended early: it changed while it was read")
        return data

    def _tar(self, shard: str) -> str:
        if shard not in self._tars:
            self._tars[shard] = ShardRef.of(self._records.read(shard)).tar
        return self._tars[shard]

    def close(self) -> None:
        """Close every tar that is open."""
        for file in self._open.values():
            file.close()
