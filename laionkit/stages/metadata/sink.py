"""Where rows go: kept ones to parts, or first to be ordered with all others; dropped ones noted."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.progress import Counts
from laionkit.core.schemas import Reason
from laionkit.core.worklist_parts import PartWriter
from laionkit.ops.link_filters import CODE, ROW, SOURCE, VALUE, Reasons
from laionkit.stages.metadata.ledger import UNREADABLE, Ledger

if TYPE_CHECKING:
    from laionkit.backends.source_tables import Batch
    from laionkit.stages.metadata.order import LinkOrder


class Sink:
    """Takes every row of a run once; `kept` counts those that are in the work list."""

    def __init__(
        self,
        ledger: Ledger,
        writer: PartWriter,
        reasons: Reasons,
        order: "LinkOrder | None",
        limit: int | None,
    ) -> None:
        """Write kept rows as they come, up to `limit`; or once `order` has seen them all."""
        self.ledger, self.writer, self.reasons = ledger, writer, reasons
        self.order, self.limit = order, limit
        self.kept = 0

    @property
    def full(self) -> bool:
        """Whether nothing more is wanted, so that the rest need not be read."""
        return self.order is None and self.limit is not None and self.kept >= self.limit

    def drop(
        self,
        source: int,
        rows: pa.Table,
        numbers: np.ndarray,
        codes: np.ndarray,
        values: pa.ChunkedArray | None,
    ) -> pa.Table:
        """Note the rows that have a code; return the others."""
        keep = codes == 0
        if keep.all():
            return rows
        gone = pa.array(~keep)
        links = _links(rows).filter(gone) if self.ledger.full else None
        values = values.filter(gone) if self.ledger.full and values is not None else None
        self.ledger.add(source, numbers[~keep], links, codes[~keep], values)
        return rows.filter(pa.array(keep))

    def count(self, codes: dict[int, int]) -> Counts:
        """Count dropped rows that are not written down: code → rows."""
        self.ledger.count(codes)
        return Counts.of(0, {self.reasons.names[c]: n for c, n in codes.items()})

    def note(self, source: int, dropped: pa.Table) -> Counts:
        """Note dropped rows of a scan: ROW, ``link``, CODE and VALUE."""
        codes = dropped[CODE].to_numpy()
        numbers = dropped[ROW].to_numpy()
        self.ledger.add(source, numbers, dropped["link"], codes, dropped[VALUE])
        return self.lost(codes)

    def drop_unreadable(self, source: int, batch: "Batch") -> None:
        """Note what was no row at all."""
        if batch.bad:
            self.ledger.add_unreadable(source, batch.bad, self.reasons.code(UNREADABLE))

    def keep(self, source: int, rows: pa.Table, numbers: np.ndarray) -> int:
        """Hand kept rows on: to be ordered with all others, or to be written. Returns how many."""
        if not rows.num_rows:
            return 0
        if self.order is None:
            return self._keep_up_to_limit(source, rows, numbers)
        sources = pa.array(np.full(rows.num_rows, source, np.int32))
        rows = rows.append_column(pa.field(SOURCE, pa.int32()), sources)
        self.order.add(rows.append_column(pa.field(ROW, pa.int64()), pa.array(numbers)))
        return int(rows.num_rows)

    def settle(self) -> None:
        """Write what all rows together keep, in its final order."""
        if self.order is None:
            return
        for rows, codes in self.order.settle():
            gone = codes > 0
            if gone.any():
                lost = rows.filter(pa.array(gone))
                numbers = lost[ROW].to_numpy()
                sources = lost[SOURCE].combine_chunks()
                self.ledger.add(sources, numbers, _links(lost), codes[gone], None)
                rows = rows.filter(pa.array(~gone))
            self.writer.add(rows.drop_columns([SOURCE, ROW]))
            self.kept += rows.num_rows

    def lost(self, codes: np.ndarray, unreadable: int = 0, over_limit: int = 0) -> Counts:
        """Counts of the rows of a batch that were dropped."""
        names = self.reasons.names
        counts = {names[c]: n for c, n in enumerate(np.bincount(codes).tolist()) if c and n}
        for reason, count in ((UNREADABLE, unreadable), (Reason.OVER_LIMIT.value, over_limit)):
            if count:
                counts[reason] = counts.get(reason, 0) + count
        return Counts.of(0, counts)

    def _keep_up_to_limit(self, source: int, rows: pa.Table, numbers: np.ndarray) -> int:
        left = int(rows.num_rows)
        if self.limit is not None:
            left = min(left, self.limit - self.kept)
        if left < rows.num_rows:
            over = rows.slice(left)
            codes = np.full(over.num_rows, self.reasons.code(Reason.OVER_LIMIT), np.uint16)
            self.ledger.add(source, numbers[left:], _links(over), codes, None)
        self.writer.add(rows.slice(0, left))
        self.kept += left
        return left


def _links(rows: pa.Table) -> pa.ChunkedArray:
    """What names each row's picture: its link, else its path."""
    names = [name for name in ("url", "path") if name in rows.column_names]
    return pc.coalesce(*(rows[name] for name in names))
