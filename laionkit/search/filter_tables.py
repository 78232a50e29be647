"""What filters are over: a dataset's columns, or the metadata of a folder of another's making.

Loaded when the first filter comes: a query without one needs no SQL engine.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laionkit.backends.knn import Bitmap
from laionkit.core.columns import CARRIED, FETCHED, PUBLISHED
from laionkit.core.engine import DEFAULT_MEMORY_MB, VIEW, Engine, sql_name, sql_text
from laionkit.core.files import Folder
from laionkit.core.table import DatasetTable
from laionkit.search import bits
from laionkit.search.foreign import AnySegment, ForeignSegment
from laionkit.search.scores import Scores
from laionkit.search.view import IMAGE_INDEX

TIMEOUT_S = 60.0
_BLOCK_ROWS = 1 << 20


class DatasetFilters(DatasetTable):
    """A dataset's table, judging conditions for the segments of its index."""

    def __init__(self, dataset: Folder, scores: Scores) -> None:
        """Open the dataset; `scores` know which columns lie in row order."""
        super().__init__(dataset, timeout_s=TIMEOUT_S)
        self._scores = scores

    def is_near(self, columns: Sequence[str], segments: Sequence[AnySegment]) -> bool:
        """Whether the columns are scores whose arrays are there, each key in one shard."""
        return not self.tried_again and all(
            name in self._scores.columns
            and self.origins[name] not in (PUBLISHED, CARRIED, FETCHED)
            and all(self._scores.array(segment, name) is not None for segment in segments)
            for name in columns
        )

    def masks(
        self, sql: str, columns: Sequence[str], segments: Sequence[AnySegment]
    ) -> list[Bitmap]:
        """Which rows of each segment meet a condition over `columns`."""
        if columns and self.is_near(columns, segments):
            return [self._near(sql, columns, segment) for segment in segments]
        names = list(dict.fromkeys(["key", *columns]))
        batches = self.batches(f"SELECT key FROM ({self.select(names)}) WHERE {sql}")
        keys = pa.chunked_array([batch.column(0) for batch in batches], pa.string())
        return [
            bits.from_mask(pc.is_in(segment.rows.keys(), value_set=keys).to_numpy())
            for segment in segments
        ]

    def _near(self, sql: str, columns: Sequence[str], segment: AnySegment) -> Bitmap:
        """Which rows of a segment meet a condition over scores, a block at a time."""
        parts = [np.empty(0, bool)]
        for start in range(0, segment.count, _BLOCK_ROWS):
            block = {}
            for name in dict.fromkeys(columns):
                array = self._scores.array(segment, name)
                assert array is not None
                block[name] = pa.array(array[start : start + _BLOCK_ROWS], from_pandas=True)
            kept = f"SELECT ({sql}) IS TRUE AS kept FROM laionkit_rows"
            kept = self.arrow_over(pa.table(block), kept)["kept"]
            parts.append(kept.to_numpy())
        return bits.from_mask(np.concatenate(parts))


class ForeignTable(Engine):
    """The columns of metadata/, to filter by; the keys are `key`, whatever they are called."""

    def __init__(self, segment: ForeignSegment) -> None:
        """Look at the columns of a folder that is open."""
        super().__init__(IMAGE_INDEX, DEFAULT_MEMORY_MB, None, TIMEOUT_S)
        rows = segment.metadata
        listed = ", ".join(sql_text(path) for path in rows.paths)
        key = f"{sql_name(rows.key)} AS key, " if rows.key != "key" else ""
        self.execute(
            f"CREATE VIEW {VIEW} AS SELECT {key}* FROM "
            f"read_parquet([{listed}], union_by_name = true)"
        )
        described = self.execute(f"DESCRIBE SELECT * FROM {VIEW}").fetchall()
        self.columns = {str(name): str(kind) for name, kind, *_ in described}

    def is_near(self, columns: Sequence[str], segments: Sequence[AnySegment]) -> bool:
        """All of them are read from their files."""
        return False

    def masks(
        self, sql: str, columns: Sequence[str], segments: Sequence[AnySegment]
    ) -> list[Bitmap]:
        """Which rows meet a condition: one bitmap, for the one segment there is."""
        kept = self.arrow(f"SELECT ({sql}) IS TRUE AS kept FROM {VIEW}")["kept"]
        return [bits.from_mask(kept.to_numpy())]
