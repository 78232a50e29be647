"""One run over the sources: rows judged batch by batch, kept ones to parts, dropped ones noted."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.errors import InputError
from laionkit.core.files import Folder, Written
from laionkit.core.keys import KeyScheme
from laionkit.core.progress import Counts, SamplesDone
from laionkit.core.runner import Runner
from laionkit.core.schemas import METADATA, RECORDS, Reason
from laionkit.core.worklist import WorkList
from laionkit.core.worklist_parts import Part, PartWriter
from laionkit.ops import link_rows
from laionkit.ops.laion_schemas import Reading
from laionkit.ops.link_filters import Reasons, Verdict, build_verdict
from laionkit.stages.metadata.config import MetadataConfig
from laionkit.stages.metadata.ledger import UNREADABLE, Ledger
from laionkit.stages.metadata.plan import Plan, joined_columns, open_join, scan_columns

if TYPE_CHECKING:
    from laionkit.backends.source_tables import Batch, SourceTable
    from laionkit.stages.metadata.engine import LinkEngine
    from laionkit.stages.metadata.order import LinkOrder, OrderSteps

# Columns that ride along and are not written.
_BLOCKED, _OPTED_OUT, _SOURCE, _ROW = "_blocked", "_opted_out", "_source", "_row"
_KEY = r"^[^./\s]+$"
SCRATCH = f"{RECORDS}/{METADATA}/scratch"


@dataclass(frozen=True)
class Start:
    """Where a run's output begins: its number, its first shard, its first part."""

    batch: int = 0
    shard: int = 0
    part: int = 0


@dataclass
class Run:
    """What a run found, once it is over."""

    parts: list[Part]
    ledger: Written | None
    counts: Counts
    kept_null: dict[str, int] = field(default_factory=dict)
    matched: int | None = None
    unread: str = ""


class Reader:
    """Reads the sources of a plan into the dataset."""

    def __init__(
        self, folder: Folder, plan: Plan, config: MetadataConfig, runner: Runner, start: Start
    ) -> None:
        """Prepare; nothing is read yet. Raises ConfigError for a filter that does not fit."""
        self.folder, self.plan, self.config, self.runner = folder, plan, config, runner
        self.start, self.reasons = start, Reasons()
        self.terms, self.top = plan.filters(config)
        self.kept_null: dict[str, int] = {}
        self.matched: int | None = 0 if config.join else None
        self.kept = 0
        self.unread = ""

    def run(self) -> Run:
        """Read every source; the parts and the ledger are in place afterwards."""
        names = list(self.plan.identities)
        scheme = KeyScheme(self.config.shard_size, int(self.config.shard_digits))
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(scratch_folder(self.folder)))
            engine = stack.enter_context(self._engine(scratch))
            full = self.config.ledger == "full"
            self.ledger = stack.enter_context(
                Ledger(self.folder, self.start.batch, names, self.reasons.names, full)
            )
            self.writer = stack.enter_context(
                PartWriter(self.folder, scheme, self.plan.schema, self.start.shard, self.start.part)
            )
            steps = self.order_steps()
            order = self._order(engine, scratch, steps) if steps.needed else None
            self._read_sources(engine, order)
            if order is not None:
                self._settle(order)
            written = self.ledger.finish()
            parts = self.writer.finish()
        counts = Counts.of(self.kept, self.ledger.counts)
        return Run(parts, written, counts, self.kept_null, self.matched, self.unread)

    def order_steps(self) -> "OrderSteps":
        """The steps that need all rows."""
        from laionkit.ops.link_filters import drops_null
        from laionkit.stages.metadata.order import OrderSteps

        config = self.config
        return OrderSteps(
            dedup=config.dedup,
            against_existing=self.start.batch > 0,
            top=self.top,
            null_top=self.top is not None and not drops_null(self.top[0], config.null),
            limit=config.limit,
            shuffle=config.shuffle,
            seed=config.seed,
        )

    @contextlib.contextmanager
    def _engine(self, scratch: Path) -> Iterator["LinkEngine"]:
        from laionkit.stages.metadata.engine import LinkEngine
        from laionkit.stages.metadata.lists import read_lists

        engine = LinkEngine(scratch, self.config.memory_mb, sorted(self.plan.scannable))
        with contextlib.closing(engine):
            for name, files in self._lists().items():
                engine.load_list(name, read_lists(files))
            if self.config.join:
                engine.load_join(self._joined(), self.config.on)
            yield engine

    def _lists(self) -> dict[str, tuple[str, ...]]:
        lists = {_BLOCKED: self.config.blocklist, _OPTED_OUT: self.config.optout}
        return {name: files for name, files in lists.items() if files}

    def _joined(self) -> Iterator[pa.Table]:
        table, on = open_join(self.config)
        given = self.plan.schema
        added = {n: t for n, t in self._join_columns().items()}
        columns = on | added
        schema = pa.schema([given.field(name) for name in columns])
        for batch in table.batches(list(dict.fromkeys(columns.values()))):
            arrays = [
                link_rows.repair(batch.table[theirs], schema.field(ours).type)
                for ours, theirs in columns.items()
            ]
            yield pa.table(arrays, schema=schema)

    def _join_columns(self) -> dict[str, str]:
        own = [
            name
            for name in self.plan.schema.names
            if any(name.lower() in {c.lower() for c in r.columns} for r in self.plan.readings)
            or name in ("caption", "hash")
        ]
        return joined_columns(self.config, pa.schema([self.plan.schema.field(n) for n in own]))

    def _order(self, engine: "LinkEngine", scratch: Path, steps: "OrderSteps") -> "LinkOrder":
        from laionkit.stages.metadata.order import LinkOrder

        fields = [*self.plan.schema, pa.field(_SOURCE, pa.int32()), pa.field(_ROW, pa.int64())]
        if self.config.keep_keys:
            fields.insert(0, pa.field("key", pa.string()))
        order = LinkOrder(engine, scratch, steps, pa.schema(fields), self.reasons)
        if steps.against_existing:
            with WorkList.open(self.folder) as work:
                for shard in work.shards():
                    wanted = ["url", "path", "path_stamp", "caption", "hash"]
                    order.add_existing(work.read(shard, wanted))
        return order

    def _read_sources(self, engine: "LinkEngine", order: "LinkOrder | None") -> None:
        for number, (table, reading) in enumerate(
            zip(self.plan.tables, self.plan.readings, strict=True)
        ):
            verdict = self._verdict(reading)
            picks = self._scannable(table, reading, order)
            if picks is not None:
                self._scan(engine, order, number, reading, verdict, picks)
                continue
            columns = list(dict.fromkeys(reading.columns.values()))
            for batch in table.batches(columns):
                self._take(engine, order, number, reading, verdict, batch)
                if order is None and self.config.limit and self.kept >= self.config.limit:
                    last = int(batch.rows[-1]) if len(batch.rows) else 0
                    self.unread = f"limit reached: {table.name} after row {last} was not read"
                    return

    def _scannable(
        self, table: "SourceTable", reading: Reading, order: "LinkOrder | None"
    ) -> str | None:
        """SQL that reads a local parquet file under canonical names, where that is all it takes."""
        config = self.config
        stops_early = config.limit is not None and order is None
        if table.name not in self.plan.scannable or stops_early or config.keep_keys:
            return None
        if self._early_hash():
            return None
        return scan_columns(table.schema, reading, self.plan.schema)

    def _scan(
        self,
        engine: "LinkEngine",
        order: "LinkOrder | None",
        number: int,
        reading: Reading,
        verdict: Verdict,
        picks: str,
    ) -> None:
        """Judge a source inside the engine, which reads what the verdict needs and no more."""
        table, schema = self.plan.tables[number], self.plan.schema
        full = self.ledger.full
        for found in engine.scan(table.name, picks, verdict, schema, full=full):
            self._note_nulls(found.kept_null)
            self.ledger.count(found.counts)
            lost = Counts.of(0, {self.reasons.names[c]: n for c, n in found.counts.items()})
            kept = 0
            if found.rows is not None:
                codes = found.rows["code"].to_numpy()
                numbers = found.rows["_row"].to_numpy()
                rows = found.rows.select(schema.names).cast(schema)
                rows = self._drop(number, rows, numbers, codes, found.rows["value"])
                keep = codes == 0
                kept = self._keep(order, number, reading, rows, numbers[keep])
                lost = self._lost(codes)
            self.runner.progress.emit(SamplesDone(METADATA, Counts.of(kept, lost.reasons)))

    def _verdict(self, reading: Reading) -> Verdict:
        sample = (self.config.sample, self.config.seed) if self.config.sample else None
        return build_verdict(
            self.terms,
            self.reasons,
            null=self.config.null,
            has_url="url" in reading.columns,
            similarity_limit=reading.similarity_limit if "similarity" in reading.columns else None,
            lists=tuple(self._lists()),
            sample=sample,
        )

    def _take(
        self,
        engine: "LinkEngine",
        order: "LinkOrder | None",
        number: int,
        reading: Reading,
        verdict: Verdict,
        batch: "Batch",
    ) -> None:
        rows = self._prepare(engine, reading, batch)
        judged = engine.judge(rows, verdict, values=self.ledger.full)
        self._note_nulls(judged.kept_null)
        if batch.bad:
            self.ledger.add_unreadable(number, batch.bad, self.reasons.code(UNREADABLE))
        rows = self._drop(number, rows, batch.rows, judged.codes, judged.values)
        keep = judged.codes == 0
        extra = [n for n in (_BLOCKED, _OPTED_OUT) if n in rows.column_names]
        rows = self._with_keys(rows.drop_columns(extra), batch, keep)
        kept = self._keep(order, number, reading, rows, batch.rows[keep])
        lost = self._lost(judged.codes, len(batch.bad), int(keep.sum()) - kept)
        self.runner.progress.emit(SamplesDone(METADATA, Counts.of(kept, lost.reasons)))

    def _note_nulls(self, kept_null: dict[str, int]) -> None:
        for name, count in kept_null.items():
            self.kept_null[name] = self.kept_null.get(name, 0) + count

    def _lost(self, codes: np.ndarray, unreadable: int = 0, over_limit: int = 0) -> Counts:
        """Counts of the rows of a batch that were dropped."""
        names = self.reasons.names
        counts = {names[c]: n for c, n in enumerate(np.bincount(codes).tolist()) if c and n}
        for reason, count in ((UNREADABLE, unreadable), (Reason.OVER_LIMIT.value, over_limit)):
            if count:
                counts[reason] = counts.get(reason, 0) + count
        return Counts.of(0, counts)

    def _drop(
        self,
        number: int,
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
        self.ledger.add(number, numbers[~keep], links, codes[~keep], values)
        return rows.filter(pa.array(keep))

    def _keep(
        self,
        order: "LinkOrder | None",
        number: int,
        reading: Reading,
        rows: pa.Table,
        numbers: np.ndarray,
    ) -> int:
        """Hand kept rows on: to be ordered with all others, or to be written. Returns how many."""
        rows = link_rows.with_trimmed_urls(rows)
        if "hash" in rows.column_names and not self._early_hash():
            rows = link_rows.with_hash(rows, reading)
        if order is None:
            return self._keep_up_to_limit(rows, number, numbers)
        sources = pa.array(np.full(rows.num_rows, number, np.int32))
        rows = rows.append_column(pa.field(_SOURCE, pa.int32()), sources)
        order.add(rows.append_column(pa.field(_ROW, pa.int64()), pa.array(numbers)))
        return int(rows.num_rows)

    def _prepare(self, engine: "LinkEngine", reading: Reading, batch: "Batch") -> pa.Table:
        """Rows under canonical names, with what filters may ask beside them."""
        added = self._join_columns() if self.config.join else {}
        own = pa.schema([f for f in self.plan.schema if f.name not in added])
        rows = link_rows.canonical(batch.table, reading, own)
        lists = self._lists()
        if self._early_hash():
            rows = link_rows.with_trimmed_urls(rows)
        if self._early_hash() and "hash" in rows.column_names:
            rows = link_rows.with_hash(rows, reading)
        if self.config.normalize_urls and "url" in reading.columns:
            rows = link_rows.with_normal_urls(rows)
        if added:
            joined, matched = engine.join(rows, self.config.on)
            self.matched = (self.matched or 0) + matched
            for name in added:
                rows = rows.append_column(self.plan.schema.field(name), joined[name])
        for name in lists:
            rows = rows.append_column(name, engine.on_list(name, rows))
        return rows

    def _early_hash(self) -> bool:
        """Whether a step before the last asks for the hash; else only kept rows need one."""
        asked = any("hash" in term.columns for term in self.terms)
        return bool(asked or self._lists() or self.config.normalize_urls or self.config.join)

    def _with_keys(self, rows: pa.Table, batch: "Batch", keep: np.ndarray) -> pa.Table:
        column = self.config.keep_keys
        if not column:
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

    def _keep_up_to_limit(self, rows: pa.Table, number: int, numbers: np.ndarray) -> int:
        left = int(rows.num_rows)
        if self.config.limit is not None:
            left = min(left, self.config.limit - self.kept)
        if left < rows.num_rows:
            over = rows.slice(left)
            codes = np.full(over.num_rows, self.reasons.code(Reason.OVER_LIMIT), np.uint16)
            self.ledger.add(number, numbers[left:], _links(over), codes, None)
        self.writer.add(rows.slice(0, left))
        self.kept += left
        return left

    def _settle(self, order: "LinkOrder") -> None:
        """Write what all rows together keep, in its final order."""
        for rows, codes in order.settle():
            gone = codes > 0
            if gone.any():
                lost = rows.filter(pa.array(gone))
                numbers = lost[_ROW].to_numpy()
                sources = lost[_SOURCE].combine_chunks()
                self.ledger.add(sources, numbers, _links(lost), codes[gone], None)
                rows = rows.filter(pa.array(~gone))
            self.writer.add(rows.drop_columns([_SOURCE, _ROW]))
            self.kept += rows.num_rows


def check_filters(plan: Plan, config: MetadataConfig) -> None:
    """Make sure that every condition fits the columns. Raises ConfigError, before any work."""
    terms, _ = plan.filters(config)
    if terms:
        from laionkit.stages.metadata.engine import LinkEngine

        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="laionkit-check-"))
            engine = LinkEngine(Path(scratch), config.memory_mb)
            stack.enter_context(contextlib.closing(engine)).check(terms, plan.schema)


@contextlib.contextmanager
def scratch_folder(dataset: Folder) -> Iterator[str]:
    """A folder for spills, beside the dataset where that is local; it goes away afterwards."""
    parent = None
    if dataset.is_local:
        parent = dataset.local_path(SCRATCH)
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=parent) as folder:
        yield folder
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _links(rows: pa.Table) -> pa.ChunkedArray:
    """What names each row's picture: its link, else its path."""
    names = [name for name in ("url", "path") if name in rows.column_names]
    return pc.coalesce(*(rows[name] for name in names))
