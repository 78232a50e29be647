"""Finding a key that two parquet files hold, in bounded memory: DuckDB spills to disk."""

import tempfile
from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.files import Folder

MEMORY_LIMIT = "1GB"


def find_repeated_key(
    home: Folder, new: Sequence[str], old: Sequence[str], column: str
) -> tuple[str, str, str] | None:
    """(key, file, file) where a key of the `new` files stands twice, in new or old ones.

    Old files may repeat each other's keys (links that healed). Paths are what ``home.open``
    takes; `column` names the key in the new files and, where they have it, the old ones.
    """
    paths = [*new, *old]
    with tempfile.TemporaryDirectory(prefix="laionkit-keys-") as scratch, duckdb.connect() as con:
        con.execute("SET enable_progress_bar = false")
        con.execute("SET memory_limit = $1", [MEMORY_LIMIT])
        con.execute("SET temp_directory = $1", [scratch])
        con.execute("CREATE TABLE keys (file INTEGER, key VARCHAR)")
        for number, path in enumerate(paths):
            _load(con, home, path, number, column)
        found = con.execute(
            "SELECT key, min(file), max(file), count(*) AS n,"
            " count(*) FILTER (file < $1) AS fresh FROM keys GROUP BY key"
            " HAVING n > 1 AND fresh > 0 ORDER BY min(file), key LIMIT 1",
            [len(new)],
        ).fetchall()
    if not found:
        return None
    key, first, last = found[0][:3]
    return str(key), paths[first], paths[last]


def _load(
    con: duckdb.DuckDBPyConnection, home: Folder, path: str, number: int, column: str
) -> None:
    with home.open(path) as file:
        parquet = pq.ParquetFile(file)
        name = column if column in parquet.schema_arrow.names else "key"
        for batch in parquet.iter_batches(columns=[name]):
            keys = pa.table({"key": batch.column(0).cast(pa.string())})
            con.register("batch", keys)
            con.execute(f"INSERT INTO keys SELECT {number}, key FROM batch")
            con.unregister("batch")
