"""Where each picture lies in a shard's tar, noted by the stage that wrote the tar.

Without a note a tar is listed by walking from header to header through all of it, whatever is
wanted of it. A note counts for the tar it was made of, and a few members tell whether it is.
"""

import pyarrow as pa

from laionkit.core.files import Folder, Written
from laionkit.core.schemas import RECORDS
from laionkit.core.shards import ShardRef
from laionkit.core.tars import BLOCK_BYTES, IMAGES_SCHEMA, plain_headers

PLACES = f"{RECORDS}/places"
# Members looked at, the last among them, to tell a tar from another of the same size: places behind
# a member whose size differs have moved, so that a few far apart tell of those between them.
_LOOKS = 8


def note_places(dataset: Folder, shard: str, images: pa.Table) -> Written:
    """Note where the pictures of a shard's tar lie (tars.IMAGES_SCHEMA)."""
    return dataset.write_table(f"{PLACES}/{shard}.parquet", images)


def noted_places(dataset: Folder, ref: ShardRef) -> pa.Table | None:
    """What was noted of a shard's tar; None without a note."""
    return dataset.read_table(ref.places) if ref.places else None


def still_hold(dataset: Folder, ref: ShardRef, images: pa.Table) -> bool:
    """Whether a shard's tar is the one of which the places of `images` were noted."""
    if not dataset.exists(ref.tar) or dataset.size(ref.tar) != ref.tar_bytes:
        return False
    step = max(1, len(images) // _LOOKS)
    looked = [images.slice(row, 1).to_pylist()[0] for row in range(len(images) - 1, -1, -step)]
    keys, extensions, offsets, sizes = ([row[n] for row in looked] for n in IMAGES_SCHEMA.names)
    starts = [offset - BLOCK_BYTES for offset in offsets]
    paths = [dataset.at(ref.tar)] * len(starts)
    headers = dataset.fs.cat_ranges(paths, starts, offsets, on_error="raise")
    return plain_headers(headers) == list(zip(keys, extensions, sizes, strict=True))
