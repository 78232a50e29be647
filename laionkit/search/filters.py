"""Filters: a ``--where`` expression becomes one bitmap a segment, before the search begins.

Its AND terms over scores alone read the arrays that lie in row order beside each segment; the
others go together, in one pass, through the dataset's table, by key.
"""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Protocol

import numpy as np

from laionkit.backends.knn import Bitmap
from laionkit.core.errors import ConfigError
from laionkit.search import bits
from laionkit.search.foreign import AnySegment
from laionkit.search.keep import Keep, prepare

if TYPE_CHECKING:  # the parser is loaded when the first filter comes
    from laionkit.ops.predicates import Predicate, Term

_KEPT = 64


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

    The columns are those of the moment the first filter came; where a filter does not fit them,
    they are looked at anew.
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
            known = self._table
            self._table = known or self._open_table()
            try:
                return self._found(where, self._table)
            except ConfigError:
                if known is None:
                    raise
                fresh = self._open_table()
                if fresh.columns == known.columns:
                    raise
                self._table = fresh
                self._masks.cache_clear()
                self._keeps.cache_clear()
                return self._found(where, fresh)

    def _found(self, where: str, table: FilterTable) -> list[Keep]:
        from laionkit.ops.predicates import parse_where

        predicate = parse_where(where, table.columns)
        table.check(predicate.sql)
        try:
            return self._keeps(predicate)
        except ConfigError as error:  # values that do not fit are found when they are met
            raise ConfigError(f"--where {where!r}: {error}") from error

    def _combine(self, predicate: "Predicate") -> list[Keep]:
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
