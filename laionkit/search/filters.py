"""Filters: a ``--where`` expression becomes one bitmap a segment, before the search begins."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.files import Folder
from laionkit.core.table import DatasetTable
from laionkit.ops.predicates import parse_where
from laionkit.search import bits
from laionkit.search.keep import Keep, prepare
from laionkit.search.segment import AnySegment

_KEPT = 64
TIMEOUT_S = 60.0


class Filters:
    """Evaluates filters over a dataset's columns; they are kept by the filter's canonical SQL.

    The columns are those of the moment the first filter came.
    """

    def __init__(self, dataset: Folder) -> None:
        """Look at a dataset; its table is opened when the first filter comes."""
        self.dataset = dataset
        self._table: DatasetTable | None = None
        self._kept: OrderedDict[str, list[Keep]] = OrderedDict()
        self._lock = threading.Lock()

    def keeps(self, where: str, segments: Sequence[AnySegment]) -> list[Keep]:
        """One filter a segment, of rows that are alive. Raises ConfigError where it is wrong."""
        with self._lock:
            if self._table is None:
                self._table = DatasetTable(self.dataset, timeout_s=TIMEOUT_S)
            predicate = parse_where(where, self._table.columns)
            if predicate.sql not in self._kept:
                self._table.check(predicate.sql)
                keys = self._matching_keys(self._table, predicate.sql, predicate.columns)
                self._kept[predicate.sql] = [_keep(segment, keys) for segment in segments]
                prepare(segments, self._kept[predicate.sql])
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(predicate.sql)
            return self._kept[predicate.sql]

    def _matching_keys(
        self, table: DatasetTable, sql: str, columns: tuple[str, ...]
    ) -> pa.ChunkedArray:
        names = list(dict.fromkeys(["key", *columns]))
        batches = list(table.batches(f"SELECT key FROM ({table.select(names)}) WHERE {sql}"))
        return pa.chunked_array([batch.column(0) for batch in batches], pa.string())


def _keep(segment: AnySegment, keys: pa.ChunkedArray) -> Keep:
    found = bits.from_mask(pc.is_in(segment.rows.keys(), value_set=keys).to_numpy())
    if segment.dead is not None:
        found &= bits.alive(segment.dead, segment.count)
    return Keep(found)
