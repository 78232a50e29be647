"""Takedowns: keys that no stage may show or pass on again.

``.laionkit/forgotten.parquet`` holds each key with the time (UTC) at which it was taken down. It
outlives ``--fresh``. What hides them: the table of the dataset (columns, filters, subsets) and
every index.
"""

import time

import pyarrow as pa

from laionkit.core.files import Folder
from laionkit.core.schemas import RECORDS

FORGOTTEN = f"{RECORDS}/forgotten.parquet"
_SCHEMA = pa.schema([("key", pa.string()), ("forgotten_at", pa.string())])


def read_forgotten(dataset: Folder) -> pa.ChunkedArray:
    """The keys taken down, in order; none where nothing ever was."""
    if not dataset.exists(FORGOTTEN):
        return pa.chunked_array([], pa.string())
    return dataset.read_table(FORGOTTEN, columns=["key"]).column("key")


def forgotten_content(dataset: Folder) -> str:
    """What names the state of the list; empty where nothing was ever taken down."""
    if not dataset.exists(FORGOTTEN):
        return ""
    return f"{len(read_forgotten(dataset))} keys"


def add_forgotten(dataset: Folder, keys: pa.ChunkedArray) -> int:
    """Add keys to the list; return how many are new to it."""
    import pyarrow.compute as pc  # 40 ms that reading the list does not need

    old = dataset.read_table(FORGOTTEN) if dataset.exists(FORGOTTEN) else _SCHEMA.empty_table()
    fresh = pc.unique(keys.filter(pc.invert(pc.is_in(keys, value_set=old["key"]))))
    if not len(fresh):
        return 0
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    added = pa.table({"key": fresh, "forgotten_at": pa.array([now] * len(fresh))}, _SCHEMA)
    dataset.write_table(FORGOTTEN, pa.concat_tables([old, added]).sort_by("key"))
    return len(fresh)
