"""Names and types that the rooms share: where things lie, columns; statuses and reasons with them.

Contracts: img2dataset's shards, clip-retrieval's embeddings and index; see docs in each stage.
"""

import pyarrow as pa

from laionkit.core.reasons import Reason as Reason
from laionkit.core.reasons import Status as Status

METADATA = "metadata"
SHARDS = "shards"
EMBEDDINGS = "embeddings"
SCORES = "scores"
INDEX = "index"
MEASURED = "evaluation.json"  # what a stage measured of its own output, in the stage's folder
SUBSETS = "subsets"
RECORDS = ".laionkit"
# Records of image shards, whoever made them (fetch, or adopt for what others fetched).
SHARD_RECORDS = "fetch"

# What came with the link, under its canonical name. Anything else is carried through under its
# own name, or as src_NAME where it would collide (case-insensitively) with one of RESERVED.
PUBLISHED_COLUMNS: dict[str, pa.DataType] = {
    "url": pa.string(),
    "path": pa.string(),
    "caption": pa.string(),
    "language": pa.string(),
    "license": pa.string(),
    "hash": pa.int64(),
    "uid": pa.string(),
    "similarity": pa.float64(),
    "punsafe": pa.float64(),
    "pwatermark": pa.float64(),
    "width_published": pa.int32(),
    "height_published": pa.int32(),
    "aesthetic_v1_published": pa.float64(),
    "aesthetic_v2_published": pa.float64(),
    "aesthetic_published": pa.float64(),
}

# What fetch finds, in img2dataset's order and types; `reason` and `shard` are ours.
FETCHED_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "status": pa.string(),
    "error_message": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "exif": pa.string(),
    "sha256": pa.string(),
    "reason": pa.string(),
}

# What fetch adds where it was asked to, or where a server refused use (the evidence, as JSON).
EXTRA_FETCHED_COLUMNS: dict[str, pa.DataType] = {
    "md5": pa.string(),
    "phash": pa.string(),
    "opt_out": pa.string(),
}

# Columns of a score file, scores/COLUMN/SHARD.parquet.
SCORE_SCHEMA = pa.schema([("key", pa.string()), ("value", pa.float32())])

RESERVED_COLUMNS = frozenset(
    {*PUBLISHED_COLUMNS, *FETCHED_COLUMNS, *EXTRA_FETCHED_COLUMNS, "shard", "match"}
)


def column_for(name: str) -> str:
    """Spell a score or model name as a column: ``aesthetic-v2`` becomes ``aesthetic_v2``."""
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")
