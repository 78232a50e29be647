"""Rows that are not asked for: samples taken down, and pictures that a later row stands for."""

import pyarrow as pa

from laionkit.core.files import Folder
from laionkit.core.forgotten import read_superseded, read_takedowns
from laionkit.core.schemas import Reason
from laionkit.ops.stored_image import Found


class Hidden:
    """The keys that a dataset hides, as they are when a run begins."""

    def __init__(self, dataset: Folder) -> None:
        """Read them."""
        given = {
            Reason.TAKEN_DOWN: read_takedowns(dataset),
            Reason.SUPERSEDED: read_superseded(dataset),
        }
        self._keys = {reason: keys for reason, keys in given.items() if len(keys)}

    def of(self, rows: pa.Table) -> dict[int, Found]:
        """Which rows are not asked for, and what stands in their place."""
        found: dict[int, Found] = {}
        for reason, hidden in self._keys.items():
            import pyarrow.compute as pc  # 50 ms a process, for the few datasets that hide any

            at = pc.is_in(rows.column("key"), value_set=hidden.combine_chunks()).to_numpy()
            found |= {int(i): Found(reason, _WORDS[reason]) for i in at.nonzero()[0]}
        return found


_WORDS = {
    Reason.TAKEN_DOWN: "taken down before it was fetched (laionkit forget)",
    Reason.SUPERSEDED: "the picture changed before it was read: a later row stands for it",
}
