"""Rows of a source made ready to be judged: canonical columns, joined ones, what lists say."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.errors import InputError
from laionkit.ops import link_rows
from laionkit.ops.laion_schemas import Reading
from laionkit.ops.link_filters import BLOCKED, OPTED_OUT
from laionkit.ops.predicates import Term
from laionkit.stages.metadata.config import MetadataConfig
from laionkit.stages.metadata.lists import read_lists
from laionkit.stages.metadata.plan import Joined, Plan

if TYPE_CHECKING:
    from laionkit.backends.source_tables import Batch
    from laionkit.stages.metadata.engine import LinkEngine

# Columns that ride along and are not written: what a row matches on the lists.
LISTS = (BLOCKED, OPTED_OUT)
_KEY = r"^[^./\s]+$"


class Preparer:
    """Brings batches under canonical names, with what filters may ask beside them."""

    def __init__(self, plan: Plan, config: MetadataConfig, terms: Sequence[Term]) -> None:
        """Prepare for the filters in `terms`; nothing is read yet."""
        self.plan, self.config = plan, config
        given = {BLOCKED: config.blocklist, OPTED_OUT: config.optout}
        self.lists = {name: files for name, files in given.items() if files}
        self.asked = {name for term in terms for name in term.columns}
        # Whether a step before the last asks for the hash; else only kept rows need one.
        self.early_hash = bool(
            "hash" in self.asked or self.lists or config.normalize_urls or config.join
        )
        self.added = plan.joined.added if plan.joined else {}

    def load(self, engine: "LinkEngine") -> None:
        """Read the lists and the joined table into the engine."""
        self._engine = engine
        for name, files in self.lists.items():
            engine.load_list(name, read_lists(files))
        if self.plan.joined:
            engine.load_join(self._rows_of(self.plan.joined), self.config.on)

    def asked_columns(self, reading: Reading, *, links: bool) -> tuple[str, ...]:
        """The columns of a source that the filters ask; with `links`, what the ledger writes."""
        asked = set(self.asked)
        if asked & set(self.added):
            asked.add(self.config.on)
        if "hash" in asked and "hash" not in reading.columns:  # computed of these
            asked |= {"url", "caption"}
        if links:
            asked |= {"url", "path"}
        lower = {name.lower() for name in asked}
        return tuple(theirs for ours, theirs in reading.columns.items() if ours.lower() in lower)

    def prepare(self, reading: Reading, batch: "Batch") -> tuple[pa.Table, int]:
        """A batch under canonical names and types, joined, with its matches on the lists.

        And how many rows the join matched.
        """
        matched = 0
        own = pa.schema([f for f in self.plan.schema if f.name not in self.added])
        rows = link_rows.canonical(batch.table, reading, own)
        if self.early_hash:
            rows = link_rows.with_trimmed_urls(rows)
        if self.early_hash and "hash" in rows.column_names:
            rows = link_rows.with_hash(rows, reading)
        if self.config.normalize_urls and "url" in reading.columns:
            rows = link_rows.with_normal_urls(rows)
        if self.added:
            joined, matched = self._engine.join(rows, self.config.on)
            for name in self.added:
                rows = rows.append_column(self.plan.schema.field(name), joined[name])
        for name in self.lists:
            rows = rows.append_column(name, self._engine.on_list(name, rows))
        return rows, matched

    def finish(self, reading: Reading, rows: pa.Table) -> pa.Table:
        """Kept rows as they are stored: links trimmed, LAION's hash where there was none."""
        rows = link_rows.with_trimmed_urls(rows)
        if "hash" in rows.column_names and not self.early_hash:
            rows = link_rows.with_hash(rows, reading)
        return rows

    def with_keys(self, rows: pa.Table, batch: "Batch", keep: np.ndarray) -> pa.Table:
        """Kept rows with the keys that the source gives them. Raises InputError for a bad one."""
        column = self.config.keep_keys
        if not column or not rows.num_rows:
            return rows
        keys = link_rows.repair(batch.table[column], pa.string()).filter(pa.array(keep))
        good = pc.fill_null(pc.match_substring_regex(keys, _KEY), False)
        if not pc.all(good).as_py():
            at = pc.index(good, False).as_py()
            raise InputError(
                f"--keep-keys {column}: row {batch.rows[keep][at]} has key {keys[at].as_py()!r}; "
                "a key is text without dots, slashes and spaces"
            )
        return rows.add_column(0, pa.field("key", pa.string()), keys)

    def _rows_of(self, joined: Joined) -> Iterator[pa.Table]:
        columns = {self.config.on: joined.on} | joined.added
        schema = pa.schema([self.plan.schema.field(name) for name in columns])
        for batch in joined.table.batches(list(columns.values())):
            arrays = [
                link_rows.repair(batch.table[theirs], schema.field(ours).type)
                for ours, theirs in columns.items()
            ]
            yield pa.table(arrays, schema=schema)
