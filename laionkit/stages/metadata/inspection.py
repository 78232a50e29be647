"""What sources are, without touching anything: the sets told, columns, nulls, ranges, histograms.

Numbers of rows, nulls and ranges come from a parquet file's footer where it has them; histograms
and whatever else is shown come from the first rows, so that a large remote file costs little.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from laionkit.ops.laion_schemas import Reading
from laionkit.stages.metadata.config import MetadataConfig
from laionkit.stages.metadata.plan import read_as

if TYPE_CHECKING:
    from laionkit.backends.source_tables import SourceTable

BINS = 10
_SHOWN_CHARS = 60


class ColumnLook(BaseModel):
    """One column: its name here and there, its type, nulls, range, a histogram of first rows.

    `nulls`, `least` and `greatest` are of the whole file where `whole`, else of the rows looked at.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    source_name: str
    type: str
    nulls: int
    least: Any = None
    greatest: Any = None
    whole: bool = False
    histogram: tuple[int, ...] = ()
    edges: tuple[float, float] | None = None


class SourceLook(BaseModel):
    """One source: the set it is told to be, its rows where known, its columns."""

    model_config = ConfigDict(frozen=True)

    source: str
    set_name: str
    rows: int | None
    looked_at: int
    columns: tuple[ColumnLook, ...]
    notes: tuple[str, ...] = ()
    bytes: int | None = None


class Inspection(BaseModel):
    """What `laionkit metadata --inspect` prints."""

    model_config = ConfigDict(frozen=True)

    sources: tuple[SourceLook, ...]


def inspect(sources: Sequence[str], config: MetadataConfig = MetadataConfig()) -> Inspection:
    """Look at sources as `metadata` would read them, reading little and writing nothing.

    Raises what `metadata` raises for a source that is not there or has no links.
    """
    from laionkit.backends.open_table import open_table
    from laionkit.backends.sources import SourceFile, find_sources

    looks = []
    for source in find_sources(sources):
        table = open_table(source)
        size = source.size if isinstance(source, SourceFile) else None
        looks.append(_look(table, read_as(table, config), size))
    return Inspection(sources=tuple(looks))


def _look(table: "SourceTable", reading: Reading, size: int | None) -> SourceLook:
    head = table.head()
    known = table.statistics()
    columns = tuple(
        _column(ours, theirs, head[theirs], known.get(theirs))
        for ours, theirs in reading.columns.items()
    )
    return SourceLook(
        source=table.name,
        set_name=reading.set_name,
        rows=table.total,
        looked_at=head.num_rows,
        columns=columns,
        notes=reading.notes,
        bytes=size,
    )


def _column(
    ours: str, theirs: str, head: pa.ChunkedArray, known: tuple[int, Any, Any] | None
) -> ColumnLook:
    counts, edges = _histogram(head)
    nulls, least, greatest = known if known is not None else (head.null_count, *_range(head))
    return ColumnLook(
        name=ours,
        source_name=theirs,
        type=str(head.type),
        nulls=nulls,
        least=_short(least),
        greatest=_short(greatest),
        whole=known is not None,
        histogram=counts,
        edges=edges,
    )


def _range(column: pa.ChunkedArray) -> tuple[Any, Any]:
    if not len(column) or pa.types.is_nested(column.type) or pa.types.is_null(column.type):
        return None, None
    found = pc.min_max(column).as_py()
    return found["min"], found["max"]


def _histogram(column: pa.ChunkedArray) -> tuple[tuple[int, ...], tuple[float, float] | None]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return (), None
    values = column.drop_null().to_numpy().astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return (), None
    counts, edges = np.histogram(values, BINS)
    return tuple(counts.tolist()), (float(edges[0]), float(edges[-1]))


def _short(value: Any) -> Any:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value[:_SHOWN_CHARS]
    return value if value is None or isinstance(value, int | float) else str(value)
