"""Where each picture lies in a shard's tar, noted by the stage that wrote the tar.

Without a note a tar is listed by walking from header to header through all of it, whatever is
wanted of it. A note counts for the tar it was made of, and a few members tell whether it is.
"""

import numpy as np
import pyarrow as pa

from laionkit.core.files import Folder, Written
from laionkit.core.schemas import RECORDS
from laionkit.core.shards import ShardRef
from laionkit.core.tars import BLOCK_BYTES, is_header_of

PLACES = f"{RECORDS}/places"
# Members looked at to tell a tar from another of the same size: places behind a member whose size
# differs have moved, so that a few far apart tell of all between them.
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
    rows = np.linspace(0, len(images) - 1, min(_LOOKS, len(images))).astype(np.int64)
    keys, extensions, offsets, sizes = images.take(pa.array(rows)).to_pydict().values()
    starts = [offset - BLOCK_BYTES for offset in offsets]
    paths = [dataset.at(ref.tar)] * len(starts)
    headers = dataset.fs.cat_ranges(paths, starts, offsets, on_error="raise")
    return all(map(is_header_of, headers, keys, extensions, sizes))
