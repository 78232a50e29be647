"""What a segment knows of its rows: key, caption, url, shard and row in the shard.

Written in the vectors' order, out of core, twice from one pass: as Arrow IPC, which is mapped and
read by row in O(1), and as the parquet files that clip-retrieval reads (``metadata/``).
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laionkit.core.embeddings import EmbeddingRef
from laionkit.core.errors import InputError
from laionkit.core.files import Folder

BUCKET_ROWS = 262_144
_POSITION = "__position"
_SHARD = "__shard"
_ROW = "__row"


def metadata_schema(dataset: Folder, refs: Sequence[EmbeddingRef], key: str) -> pa.Schema:
    """The columns of all shards' metadata, each of a type that holds all of them.

    Raises InputError where a file's rows are not its vectors' or it has no column `key`.
    """
    schemas = []
    for ref in refs:
        try:
            with dataset.open(ref.metadata) as file:
                parquet = pq.ParquetFile(file)
                rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
        except pa.ArrowInvalid as error:
            raise InputError(f"{ref.metadata} is not readable parquet: {error}") from error
        if rows != ref.rows:
            raise InputError(
                f"{ref.metadata} holds {rows} rows and {ref.image} holds {ref.rows} vectors: "
                "they must agree row by row"
            )
        if key not in schema.names:
            raise InputError(
                f"{ref.metadata} has no column {key} (the key); it has {', '.join(schema.names)}"
            )
        schemas.append(schema.remove_metadata())
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"the metadata of two shards cannot be joined: {error}") from error


def ordered_metadata(
    dataset: Folder, refs: Sequence[EmbeddingRef], key: str, position_of: NDArray[np.int64]
) -> Iterator[pa.Table]:
    """All shards' metadata in the order of `position_of` (global row → position, -1: left out).

    Each table has the metadata's columns and three of ours, see `segment_rows`.
    """
    schema = metadata_schema(dataset, refs, key)
    buckets = -(-int(position_of.max(initial=-1) + 1) // BUCKET_ROWS)
    if buckets <= 1:
        tables = list(_shard_tables(dataset, refs, schema, position_of))
        yield pa.concat_tables(tables).sort_by(_POSITION).drop_columns([_POSITION])
        return
    with tempfile.TemporaryDirectory(prefix="laionkit-index-") as place:
        _spill(_shard_tables(dataset, refs, schema, position_of), Path(place), buckets)
        for bucket in range(buckets):
            with pa.OSFile(str(Path(place) / str(bucket))) as file:
                table = pa.ipc.open_stream(file).read_all()
            yield table.sort_by(_POSITION).drop_columns([_POSITION])


def _shard_tables(
    dataset: Folder,
    refs: Sequence[EmbeddingRef],
    schema: pa.Schema,
    position_of: NDArray[np.int64],
) -> Iterator[pa.Table]:
    start = 0
    for number, ref in enumerate(refs):
        table = dataset.read_table(ref.metadata)
        columns = [
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(ref.rows, field.type)
            for field in schema
        ]
        positions = position_of[start : start + ref.rows]
        rows = np.arange(ref.rows, dtype=np.int32)
        full = pa.Table.from_arrays(
            [
                *columns,
                pa.array(positions),
                pa.array(np.full(ref.rows, number, np.int32)),
                pa.array(rows),
            ],
            names=[*schema.names, _POSITION, _SHARD, _ROW],
        )
        yield full if (positions >= 0).all() else full.filter(pa.array(positions >= 0))
        start += ref.rows


def forgotten_rows(
    dataset: Folder, refs: Sequence[EmbeddingRef], key: str, forgotten: pa.ChunkedArray
) -> NDArray[np.bool_]:
    """Which rows of all shards have a key that is forgotten."""
    parts = [dataset.read_table(ref.metadata, [key])[key].cast(pa.string()) for ref in refs]
    return np.concatenate([pc.is_in(part, value_set=forgotten).to_numpy() for part in parts])


def _spill(tables: Iterator[pa.Table], place: Path, buckets: int) -> None:
    """Deal rows out to one stream a bucket, by position."""
    with contextlib.ExitStack() as stack:
        writers: dict[int, Any] = {}
        for table in tables:
            bucket_of = table[_POSITION].to_numpy() // BUCKET_ROWS
            for bucket in np.unique(bucket_of):
                if bucket not in writers:
                    file = stack.enter_context(pa.OSFile(str(place / str(bucket)), "wb"))
                    writers[bucket] = stack.enter_context(pa.ipc.new_stream(file, table.schema))
                writers[bucket].write_table(table.take(np.flatnonzero(bucket_of == bucket)))


def segment_rows(bucket: pa.Table, key: str, shards: Sequence[str]) -> pa.Table:
    """The columns a segment keeps: key, caption, url, shard, row (in the shard).

    A picture of the user's own has a path and no url: it stands in the url's place.
    """
    nothing = pa.nulls(bucket.num_rows, pa.string())
    text = {
        name: bucket[name].cast(pa.string()) if name in bucket.column_names else nothing
        for name in (key, "caption", "url", "path")
    }
    names = pa.DictionaryArray.from_arrays(
        bucket[_SHARD].combine_chunks(), pa.array(shards, pa.string())
    )
    return pa.table(
        {
            "key": text[key],
            "caption": text["caption"],
            "url": pc.coalesce(text["url"], text["path"]),
            "shard": names,
            "row": bucket[_ROW],
        }
    )


def published_rows(bucket: pa.Table) -> pa.Table:
    """The columns clip-retrieval reads: the shards' metadata as it was."""
    return bucket.drop_columns([_SHARD, _ROW])
