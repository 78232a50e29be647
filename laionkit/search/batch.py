"""Many queries at once: texts or vectors from a file, hits to one parquet file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laionkit.core.errors import InputError
from laionkit.search.blend import blend, keys_of
from laionkit.search.queries import Limits, check_vector
from laionkit.search.searcher import Searcher

_TEXT_COLUMNS = ("text", "query", "caption")
_TEXTS = 64  # embedded at a time
_GROUP_ROWS = 65_536
_WISHES: dict[str, Any] = {"like": None, "plus": (), "minus": (), "boost": ()}


def read_queries(path: str) -> list[dict[str, Any]]:
    """Queries of a file: lines of .txt, a text column of .parquet, vectors of .npy.

    Raises InputError where it cannot be read or holds none.
    """
    try:
        found = _read(Path(path))
    except (OSError, ValueError, EOFError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read as queries: {error}") from error
    if not found:
        raise InputError(f"{path} holds no query")
    return found


def _read(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".npy":
        vectors = np.atleast_2d(np.load(path, allow_pickle=False))
        if vectors.dtype.kind != "f" or vectors.ndim != 2:
            raise ValueError(
                f"it holds {vectors.dtype} of shape {vectors.shape}, not float vectors"
            )
        return [{"vector": vector} for vector in vectors]
    if kind == ".parquet":
        table = pq.read_table(path)
        name = next((n for n in _TEXT_COLUMNS if n in table.column_names), None)
        if name is None:
            there = ", ".join(table.column_names)
            raise ValueError(f"it has no column {' or '.join(_TEXT_COLUMNS)}, but {there}")
        return [{"text": text} for text in _texts(table, name)]
    if kind == ".txt":
        lines = path.read_text("utf-8").splitlines()
        return [{"text": line.strip()} for line in lines if line.strip()]
    raise ValueError("queries come as .txt, .parquet or .npy")


def _texts(table: pa.Table, name: str) -> list[str]:
    kind = table.schema.field(name).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"its column {name} holds {kind}, not texts")
    texts: list[str] = table[name].to_pylist()
    empty = next((row for row, text in enumerate(texts) if not (text or "").strip()), None)
    if empty is not None:
        raise ValueError(f"row {empty} (from 0) of its column {name} says nothing to look for")
    return texts


def search_many(
    searcher: Searcher, queries: list[dict[str, Any]], settings: Mapping[str, Any], out: str
) -> int:
    """Answer every query and write the hits as they come; return how many hits there are.

    Columns: query (its number, from 0), text, rank (from 1), then those of a hit.
    """
    count, writer = 0, None
    partial = Path(out).with_name(f".{Path(out).name}.tmp")
    try:
        for table in _joined(_tables(searcher, queries, settings)):
            writer = writer or pq.ParquetWriter(partial, table.schema, compression="zstd")
            writer.write_table(table.cast(writer.schema))
            count += table.num_rows
        if writer is not None:
            writer.close()
            partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _joined(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in row groups that are worth reading."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(one.num_rows for one in waiting) >= _GROUP_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _tables(
    searcher: Searcher, queries: list[dict[str, Any]], settings: Mapping[str, Any]
) -> Iterator[pa.Table]:
    """The hits of each query. What all queries wish for is looked up once, pictures by URL too."""
    rest = dict(settings)
    like, plus, minus, boost = (rest.pop(n, d) for n, d in _WISHES.items())
    wanted = Limits(**rest)
    shared, leave_out = searcher.wished(like, plus, minus, boost), keys_of(like, plus, minus)
    for number, (query, vector) in enumerate(_vectors(searcher, queries)):
        try:
            asked = blend([(1.0, check_vector(vector, searcher.dim)), *shared])
            hits = searcher.find_near(asked, wanted, leave_out).table
        except InputError as error:
            raise InputError(f"query {number} of {len(queries)} (from 0): {error}") from error
        texts = pa.array([query.get("text")] * hits.num_rows, pa.string())
        numbers = pa.array(np.full(hits.num_rows, number, np.int32))
        ranks = pa.array(np.arange(1, hits.num_rows + 1, dtype=np.int32))
        columns: dict[str, Any] = {"query": numbers, "text": texts, "rank": ranks}
        for name in hits.column_names:
            columns[name] = _nulls_for_nan(hits[name])
        yield pa.table(columns)


def _vectors(
    searcher: Searcher, queries: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each query with its vector; texts are embedded some at a time."""
    for start in range(0, len(queries), _TEXTS):
        some = queries[start : start + _TEXTS]
        if "vector" in some[0]:
            yield from ((query, query["vector"]) for query in some)
        else:
            texts = [query["text"] for query in some]
            yield from zip(some, searcher.vectors_of_texts(texts), strict=True)


def _nulls_for_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """What was not scored is null in a file."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
