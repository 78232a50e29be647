"""Filters: a ``--where`` expression becomes one bitmap a segment, before the search begins.

Its AND terms over scores alone read the arrays that lie in row order beside each segment; the
others go together, in one pass, through the dataset's table, by key.
"""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laionkit.backends.knn import Bitmap
from laionkit.core.columns import CARRIED, FETCHED, PUBLISHED
from laionkit.core.files import Folder
from laionkit.core.table import DatasetTable
from laionkit.ops.predicates import Predicate, Term, parse_where
from laionkit.search import bits
from laionkit.search.foreign import AnySegment
from laionkit.search.keep import Keep, prepare
from laionkit.search.scores import Scores

_KEPT = 64
_BLOCK_ROWS = 1 << 20
TIMEOUT_S = 60.0


class FilterTable(Protocol):
    """Columns that can be filtered by, name → DuckDB type, and what judges a condition."""

    columns: dict[str, str]

    def check(self, sql: str) -> None:
        """Raise ConfigError where `sql` is no condition over the columns."""

    def is_near(self, columns: Sequence[str], segments: Sequence[AnySegment]) -> bool:
        """Whether the columns lie in row order, so that a term over them costs next to nothing."""

    def masks(
        self, sql: str, columns: Sequence[str], segments: Sequence[AnySegment]
    ) -> list[Bitmap]:
        """Which rows of each segment meet a condition over `columns`."""


class Filters:
    """Evaluates filters; they, and the bitmaps of their parts, are kept by canonical SQL.

    The columns are those of the moment the first filter came.
    """

    def __init__(
        self, open_table: Callable[[], FilterTable], segments: Sequence[AnySegment]
    ) -> None:
        """Remember how to open the table; that is done when the first filter comes."""
        self._open_table, self._segments = open_table, segments
        self._table: FilterTable | None = None
        self._lock = threading.Lock()
        self._masks = lru_cache(_KEPT)(self._judge)
        self._keeps = lru_cache(_KEPT)(self._combine)

    def keeps(self, where: str) -> list[Keep]:
        """One filter a segment, of rows that are alive. Raises ConfigError where it is wrong."""
        with self._lock:
            if self._table is None:
                self._table = self._open_table()
            predicate = parse_where(where, self._table.columns)
            self._table.check(predicate.sql)
            return self._keeps(predicate)

    def _combine(self, predicate: Predicate) -> list[Keep]:
        table = self._table
        assert table is not None
        near: list[Term] = []
        far: list[Term] = []
        for term in predicate.terms:
            (near if table.is_near(term.columns, self._segments) else far).append(term)
        found = [self._masks(term.sql, term.columns) for term in near]
        if far:
            names = tuple(name for term in far for name in term.columns)
            sql = " AND ".join(f"({term.sql})" for term in far)
            found.append(self._masks(sql, names))
        keeps = [
            Keep(reduce(np.bitwise_and, masks, _alive(segment)))
            for segment, *masks in zip(self._segments, *found, strict=True)
        ]
        prepare(self._segments, keeps)
        return keeps

    def _judge(self, sql: str, columns: tuple[str, ...]) -> list[Bitmap]:
        assert self._table is not None
        return self._table.masks(sql, columns, self._segments)


def _alive(segment: AnySegment) -> Bitmap:
    if segment.dead is None:
        return bits.from_mask(np.ones(segment.count, bool))
    return bits.alive(segment.dead, segment.count)


class DatasetFilters(DatasetTable):
    """A dataset's table, judging conditions for the segments of its index."""

    def __init__(self, dataset: Folder, scores: Scores) -> None:
        """Open the dataset; `scores` know which columns lie in row order."""
        super().__init__(dataset, timeout_s=TIMEOUT_S)
        self._scores = scores

    def is_near(self, columns: Sequence[str], segments: Sequence[AnySegment]) -> bool:
        """Whether the columns are scores whose arrays are there, each key in one shard."""
        return not self._tried_again and all(
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
            kept = self.arrow_over(pa.table(block), f"SELECT ({sql}) IS TRUE AS kept")["kept"]
            parts.append(kept.to_numpy())
        return bits.from_mask(np.concatenate(parts))
