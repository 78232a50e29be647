"""What a segment knows of its rows: key, caption, url, shard and row in the shard.

Written in the vectors' order, out of core, twice from one pass: as Arrow IPC, which is mapped and
read by row in O(1), and as the parquet files that clip-retrieval reads (``metadata/``).
"""

import contextlib
import math
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
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder

BUCKET_ROWS = 262_144
MOST_BUCKETS = 512  # files that are open at a time
_COPIES = 16  # of a bucket's parquet: decoded, sorted, written twice, and what Arrow sets aside
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


def bucket_rows(dataset: Folder, refs: Sequence[EmbeddingRef], rows: int, memory_mib: int) -> int:
    """How many rows of metadata are put in order at a time within so much memory.

    Raises ConfigError where there would be too many buckets.
    """
    size, count = 0, 0
    for ref in refs:
        with dataset.open(ref.metadata) as file:
            parquet = pq.ParquetFile(file).metadata
        size += sum(parquet.row_group(i).total_byte_size for i in range(parquet.num_row_groups))
        count += parquet.num_rows
    each = _COPIES * size / max(count, 1) + 64
    fitting = int(np.clip(memory_mib * 2**20 / each, 256, BUCKET_ROWS))
    if fitting * MOST_BUCKETS < rows:
        needed = math.ceil(rows / MOST_BUCKETS * each / 2**20)
        raise ConfigError(
            f"memory_mib={memory_mib}: the metadata of {rows:,} rows, {MOST_BUCKETS} parts at a "
            f"time, takes {needed}: give --memory-mib {needed}"
        )
    return fitting


def ordered_metadata(
    dataset: Folder,
    refs: Sequence[EmbeddingRef],
    key: str,
    position_of: NDArray[np.int64],
    memory_mib: int,
) -> Iterator[pa.Table]:
    """All shards' metadata in the order of `position_of` (global row → position, -1: left out).

    Each table has the metadata's columns and three of ours, see `segment_rows`.
    """
    schema = metadata_schema(dataset, refs, key)
    rows = int(position_of.max(initial=-1) + 1)
    size = bucket_rows(dataset, refs, rows, memory_mib)
    buckets = -(-rows // size)
    tables = _shard_tables(dataset, refs, schema, position_of, size)
    if buckets <= 1:
        yield pa.concat_tables(list(tables)).sort_by(_POSITION).drop_columns([_POSITION])
        return
    with tempfile.TemporaryDirectory(prefix="laionkit-index-") as place:
        _spill(tables, Path(place), size)
        for bucket in range(buckets):
            with pa.OSFile(str(Path(place) / str(bucket))) as file:
                table = pa.ipc.open_stream(file).read_all()
            yield table.sort_by(_POSITION).drop_columns([_POSITION])


def _shard_tables(
    dataset: Folder,
    refs: Sequence[EmbeddingRef],
    schema: pa.Schema,
    position_of: NDArray[np.int64],
    most: int,
) -> Iterator[pa.Table]:
    """Every shard's metadata, at most so many rows at a time, with our three columns."""
    start = 0
    for number, ref in enumerate(refs):
        with dataset.open(ref.metadata) as file:
            row = 0
            for batch in pq.ParquetFile(file).iter_batches(most):
                stop = row + batch.num_rows
                positions = position_of[start + row : start + stop]
                full = pa.Table.from_arrays(
                    [
                        *_columns(batch, schema),
                        pa.array(positions),
                        pa.array(np.full(batch.num_rows, number, np.int32)),
                        pa.array(np.arange(row, stop, dtype=np.int32)),
                    ],
                    names=[*schema.names, _POSITION, _SHARD, _ROW],
                )
                yield full if (positions >= 0).all() else full.filter(pa.array(positions >= 0))
                row = stop
        start += ref.rows


def _columns(batch: pa.RecordBatch, schema: pa.Schema) -> list[pa.Array]:
    return [
        batch[field.name].cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]


def forgotten_rows(
    dataset: Folder, refs: Sequence[EmbeddingRef], key: str, forgotten: pa.ChunkedArray
) -> NDArray[np.bool_]:
    """Which rows of all shards have a key that is forgotten."""
    parts = [dataset.read_table(ref.metadata, [key])[key].cast(pa.string()) for ref in refs]
    return np.concatenate([pc.is_in(part, value_set=forgotten).to_numpy() for part in parts])


def _spill(tables: Iterator[pa.Table], place: Path, size: int) -> None:
    """Deal rows out to one stream a bucket, by position."""
    with contextlib.ExitStack() as stack:
        writers: dict[int, Any] = {}
        for table in tables:
            bucket_of = table[_POSITION].to_numpy() // size
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
