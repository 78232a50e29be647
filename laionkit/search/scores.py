"""Scores of rows: arrays in row order beside each segment, else the scores' own files.

``segments/NAME/scores/COLUMN-CONTENT.f32`` holds one float32 a row, NaN where it was not scored.
CONTENT names the scores it was made of, so that one made of others is never read: a column that
was computed since the index stage last ran is looked up by shard and key, and the next run of
that stage writes its array. No vector is touched for it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from laionkit.core.config import fingerprint
from laionkit.core.embeddings import score_columns, score_stage
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.search.arrow import as_arrow
from laionkit.search.cache import local_file
from laionkit.search.foreign import AnySegment
from laionkit.search.layout import SegmentInfo, segment_file
from laionkit.search.segment import MappedRows, Segment

FOLDER = "scores"
_KEPT_FILES = 1024

Array = NDArray[np.float32]


class ScoreColumn:
    """One score column: the file of each shard, and what names its content."""

    def __init__(self, dataset: Folder, name: str) -> None:
        """Read the column's records."""
        self.name = name
        records = list(StageRecords(dataset, score_stage(name)).all())
        self.paths = {record.shard: record.files["scores"].path for record in records}
        self._contents = {record.shard: record.content() for record in records}

    def array_name(self, info: SegmentInfo) -> str:
        """The file of this column's array for a segment."""
        used = {shard: self._contents.get(shard, "") for shard in info.shards}
        return segment_file(info.name, f"{FOLDER}/{self.name}-{fingerprint(used)}.f32")


class Scores:
    """Values of every score column for rows of an index."""

    def __init__(self, dataset: Folder, index: Folder | None) -> None:
        """Look at a dataset's score columns; `index` is the folder of the segments, if ours."""
        self.dataset, self.index = dataset, index
        self.columns = {name: ScoreColumn(dataset, name) for name in score_columns(dataset)}
        self._arrays: dict[tuple[str, str], Array | None] = {}
        self._file = lru_cache(_KEPT_FILES)(self._read)

    def array(self, segment: AnySegment, column: str) -> Array | None:
        """A column's values in a segment's row order; None where they were not laid out so."""
        place = segment.info.name, column
        if place not in self._arrays:
            self._arrays[place] = self._open(segment, self.columns[column])
        return self._arrays[place]

    def _open(self, segment: AnySegment, column: ScoreColumn) -> Array | None:
        if self.index is None or not isinstance(segment, Segment):
            return None
        path = local_file(self.index, segment.info, column.array_name(segment.info))
        if path is None or path.stat().st_size != 4 * segment.count:
            return None
        return np.memmap(path, np.float32, "r") if segment.count else np.empty(0, np.float32)

    def of(
        self, segment: AnySegment, rows: NDArray[np.int64], known: pa.Table
    ) -> dict[str, pa.ChunkedArray]:
        """Each column's values of some rows of a segment; `known` is what it knows of them."""
        found = {}
        for name in self.columns:
            array = self.array(segment, name)
            values = self._look_up(name, known) if array is None else as_arrow(array[rows])
            found[name] = pa.chunked_array([values])
        return found

    def _look_up(self, column: str, known: pa.Table) -> pa.Array:
        """Values from the shards' files: NaN, or null among labels, where not scored."""
        keys, paths = known["key"].combine_chunks(), self.columns[column].paths
        shards = np.asarray(known["shard"].to_pylist(), object)
        parts, places = [], []
        for shard in dict.fromkeys(shards.tolist()):
            here = np.flatnonzero(shards == shard)
            places.append(here)
            if shard in paths:
                table = self._file(paths[shard])
                at = pc.index_in(keys.take(as_arrow(here)), value_set=table["key"])
                parts.append(table["value"].take(at).combine_chunks())
            else:
                parts.append(pa.nulls(len(here)))
        kinds = [part.type for part in parts if not pa.types.is_null(part.type)]
        kind = kinds[0] if kinds else self._kind(column)
        values = pa.chunked_array([part.cast(kind) for part in parts], kind)
        back = np.empty(len(keys), np.int64)
        back[np.concatenate([*places, np.empty(0, np.int64)]).astype(np.int64)] = np.arange(
            len(keys)
        )
        values = values.take(as_arrow(back)).combine_chunks()
        if not pa.types.is_floating(kind):
            return values
        return pc.coalesce(values, as_arrow(np.full(len(keys), np.nan, np.float32)).cast(kind))

    def _kind(self, column: str) -> pa.DataType:
        """The type of a column of which no row that is asked for was scored."""
        paths = self.columns[column].paths
        return self._file(next(iter(paths.values())))["value"].type if paths else pa.float32()

    def _read(self, path: str) -> pa.Table:
        return self.dataset.read_table(path, ["key", "value"])


def lay_out_scores(dataset: Folder, index: Folder, infos: Sequence[SegmentInfo]) -> int:
    """Write the arrays that are missing, remove the old ones; return how many were written."""
    columns = [ScoreColumn(dataset, name) for name in score_columns(dataset)]
    written = 0
    for info in infos:
        wanted = {column.array_name(info): column for column in columns}
        for name in index.names(segment_file(info.name, FOLDER)):
            path = segment_file(info.name, f"{FOLDER}/{name}")
            if wanted.pop(path, None) is None:
                index.remove(path)
        if wanted:
            written += _write_arrays(dataset, index, info, wanted)
    return written


def remove_scores(index: Folder, segment: str) -> None:
    """Remove the arrays of a segment that is no more."""
    place = segment_file(segment, FOLDER)
    for name in index.names(place):
        index.remove(f"{place}/{name}")


def _write_arrays(
    dataset: Folder, index: Folder, info: SegmentInfo, wanted: Mapping[str, ScoreColumn]
) -> int:
    """Write the arrays of some columns for one segment; label columns have none."""
    path = local_file(index, info, segment_file(info.name, "rows.arrow"))
    if path is None:
        raise InputError(f"{index} has no segment {info.name}: run laionkit index --fresh")
    rows = MappedRows(str(path))
    places = _places_of_shards(rows)
    written = 0
    for name, column in wanted.items():
        values = np.full(len(rows), np.nan, np.float32)
        if all(_place_scores(dataset, rows, places, shard, path, values)
               for shard, path in column.paths.items() if shard in places):  # fmt: skip
            with index.create(name) as file:
                file.write(values.tobytes())
            written += 1
    return written


def _places_of_shards(rows: MappedRows) -> dict[str, NDArray[np.int64]]:
    """The rows of each shard, in order."""
    found: dict[str, list[Any]] = {}
    start = 0
    for batch in rows.batches:
        codes = batch["shard"].indices.to_numpy()
        names = batch["shard"].dictionary.to_pylist()
        order = np.argsort(codes, kind="stable")
        cuts = np.searchsorted(codes[order], np.arange(len(names) + 1))
        for number in np.flatnonzero(np.diff(cuts)):
            found.setdefault(names[number], []).append(
                order[cuts[number] : cuts[number + 1]] + start
            )
        start += batch.num_rows
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _place_scores(
    dataset: Folder, rows: MappedRows, places: Mapping[str, NDArray[np.int64]], shard: str,
    path: str, values: Array,
) -> bool:  # fmt: skip
    """Put one shard's scores where its rows lie; False where they are no numbers."""
    table = dataset.read_table(path, ["key", "value"])
    if not pa.types.is_floating(table["value"].type):
        return False
    here = places[shard]
    at = pc.index_in(rows.take(here)["key"], value_set=table["key"])
    values[here] = pc.fill_null(table["value"].take(at), np.nan).to_numpy()
    return True
