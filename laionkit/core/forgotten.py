"""Keys that no stage may show or pass on again: takedowns, and what a later row stands for.

``.laionkit/forgotten.parquet`` holds each key with the time (UTC) at which it was taken down. It
outlives ``--fresh``. ``.laionkit/metadata/superseded-*.parquet`` hold the keys of pictures that
changed and have a later row. What hides both: the table of the dataset (columns, filters, subsets)
and every index; fetch does not ask for them.
"""

import time

import pyarrow as pa

from laionkit.core.files import Folder
from laionkit.core.schemas import METADATA, RECORDS

FORGOTTEN = f"{RECORDS}/forgotten.parquet"
SUPERSEDED = "superseded"
_SCHEMA = pa.schema([("key", pa.string()), ("forgotten_at", pa.string())])


def forgotten_files(dataset: Folder) -> list[str]:
    """The files that hold the keys, in their column ``key``."""
    return [*_takedowns(dataset), *_superseded(dataset)]


def read_forgotten(dataset: Folder) -> pa.ChunkedArray:
    """All such keys; none where nothing was ever taken down or superseded."""
    return _read(dataset, forgotten_files(dataset))


def read_takedowns(dataset: Folder) -> pa.ChunkedArray:
    """The keys taken down, in order."""
    return _read(dataset, _takedowns(dataset))


def read_superseded(dataset: Folder) -> pa.ChunkedArray:
    """The keys of pictures that have a later row."""
    return _read(dataset, _superseded(dataset))


def forgotten_content(dataset: Folder) -> str:
    """What names the state of the lists; empty where no key is on them."""
    down, over = len(read_takedowns(dataset)), len(read_superseded(dataset))
    said = [f"{down} keys"] if down else []
    return ", ".join([*said, f"{over} superseded"] if over else said)


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


def _takedowns(dataset: Folder) -> list[str]:
    return [FORGOTTEN] if dataset.exists(FORGOTTEN) else []


def _superseded(dataset: Folder) -> list[str]:
    place = f"{RECORDS}/{METADATA}"
    names = dataset.names(place, ".parquet")
    return [f"{place}/{name}" for name in names if name.startswith(f"{SUPERSEDED}-")]


def _read(dataset: Folder, files: list[str]) -> pa.ChunkedArray:
    keys = [dataset.read_table(path, columns=["key"]).column("key") for path in files]
    return pa.chunked_array([chunk for key in keys for chunk in key.chunks], pa.string())
