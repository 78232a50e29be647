"""The files of an embedded shard, as clip-retrieval lays them out, and its score columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.files import Folder, Written
from laionkit.core.schemas import EMBEDDINGS
from laionkit.stages.embed.source import Dropped, ShardSource


def write_vectors(
    dataset: Folder, model: str, kind: str, shard: str, emb_ND: NDArray[np.float16]
) -> Written:
    """Write ``KIND/KIND_SHARD.npy``: float16, C order."""
    name = f"{EMBEDDINGS}/{model}/{kind}/{kind}_{shard}.npy"
    with dataset.create(name) as file:
        np.save(file, np.ascontiguousarray(emb_ND))
    return Written(name, file.size, file.digest.hexdigest())


def write_metadata(
    dataset: Folder, model: str, source: ShardSource, kept: Sequence[int]
) -> Written:
    """Write ``metadata/metadata_SHARD.parquet``: image_path (the key), caption, the table's rest.

    Rows are those of the vectors, in their order.
    """
    keys = pa.array([source.keys[i] for i in kept], pa.string())
    columns: dict[str, Any] = {
        "image_path": keys,
        "caption": pa.array([source.captions[i] for i in kept], pa.string()),
    }
    if "key" in source.table.column_names:
        place = {key: row for row, key in enumerate(source.table["key"].to_pylist())}
        rows = pa.array([place.get(key) for key in keys.to_pylist()], pa.int64())
        table = source.table.take(rows).combine_chunks()
        columns |= {n: table[n] for n in table.column_names if n not in ("key", *columns)}
    columns["key"] = keys
    name = f"{EMBEDDINGS}/{model}/metadata/metadata_{source.name}.parquet"
    return dataset.write_table(name, pa.table(columns))


def write_dropped(dataset: Folder, model: str, shard: str, dropped: Sequence[Dropped]) -> Written:
    """Write ``dropped/dropped_SHARD.parquet``: key, reason, detail of samples without a vector."""
    rows = sorted(dropped, key=lambda lost: lost.key)
    table = pa.table(
        {
            "key": pa.array([lost.key for lost in rows], pa.string()),
            "reason": pa.array([str(lost.reason) for lost in rows], pa.string()),
            "detail": pa.array([lost.detail for lost in rows], pa.string()),
        }
    )
    return dataset.write_table(f"{EMBEDDINGS}/{model}/dropped/dropped_{shard}.parquet", table)


def reasons_of(dropped: Sequence[Dropped]) -> Mapping[str, int]:
    """How many samples each reason took."""
    counts: dict[str, int] = {}
    for lost in dropped:
        counts[lost.reason] = counts.get(lost.reason, 0) + 1
    return counts
