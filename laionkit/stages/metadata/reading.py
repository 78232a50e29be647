"""One run over the sources: rows judged batch by batch, kept ones to parts, dropped ones noted."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.files import Folder, Written
from laionkit.core.keys import KeyScheme
from laionkit.core.progress import Counts, SamplesDone
from laionkit.core.runner import Runner
from laionkit.core.schemas import METADATA
from laionkit.core.worklist import WorkList
from laionkit.core.worklist_parts import Part, PartWriter
from laionkit.ops.laion_schemas import Reading
from laionkit.ops.link_filters import (
    ROW,
    SOURCE,
    Reasons,
    Verdict,
    build_verdict,
    drops_null,
)
from laionkit.stages.metadata.config import MetadataConfig
from laionkit.stages.metadata.ledger import Ledger
from laionkit.stages.metadata.plan import Plan, scan_columns
from laionkit.stages.metadata.preparing import LISTS, Preparer
from laionkit.stages.metadata.scratch import scratch_folder
from laionkit.stages.metadata.sink import Sink

if TYPE_CHECKING:
    from laionkit.backends.source_tables import Batch, Sift, SourceTable
    from laionkit.stages.metadata.engine import LinkEngine
    from laionkit.stages.metadata.order import LinkOrder, OrderSteps


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
        self.preparer = Preparer(plan, config, self.terms)
        self.kept_null: dict[str, int] = {}
        self.matched = 0

    def run(self) -> Run:
        """Read every source; the parts and the ledger are in place afterwards."""
        config, start = self.config, self.start
        names = list(self.plan.identities)
        scheme = KeyScheme(config.shard_size, int(config.shard_digits))
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(scratch_folder(self.folder)))
            engine = stack.enter_context(self._engine(scratch))
            full = config.ledger == "full"
            ledger = stack.enter_context(
                Ledger(self.folder, start.batch, names, self.reasons.names, full)
            )
            writer = stack.enter_context(
                PartWriter(self.folder, scheme, self.plan.schema, start.shard, start.part)
            )
            steps = self.order_steps()
            order = self._order(engine, scratch, steps) if steps.needed else None
            self.sink = Sink(ledger, writer, self.reasons, order, config.limit)
            unread = self._read_sources(engine)
            self.sink.settle()
            written = ledger.finish()
            parts = writer.finish()
        counts = Counts.of(self.sink.kept, ledger.counts)
        matched = self.matched if config.join else None
        return Run(parts, written, counts, self.kept_null, matched, unread)

    def order_steps(self) -> "OrderSteps":
        """The steps that need all rows."""
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

        engine = LinkEngine(scratch, self.config.memory_mb, sorted(self.plan.scannable))
        with contextlib.closing(engine):
            self.preparer.load(engine)
            yield engine

    def _order(self, engine: "LinkEngine", scratch: Path, steps: "OrderSteps") -> "LinkOrder":
        from laionkit.stages.metadata.order import LinkOrder

        fields = [*self.plan.schema, pa.field(SOURCE, pa.int32()), pa.field(ROW, pa.int64())]
        if self.config.keep_keys:
            fields.insert(0, pa.field("key", pa.string()))
        order = LinkOrder(engine, scratch, steps, pa.schema(fields), self.reasons)
        if steps.against_existing:
            with WorkList.open(self.folder) as work:
                for shard in work.shards():
                    wanted = ["url", "path", "path_stamp", "caption", "hash"]
                    order.add_existing(_without_pictures(work.read(shard, wanted)))
        return order

    def _read_sources(self, engine: "LinkEngine") -> str:
        """Read source by source; a note where the limit left something unread."""
        sources = zip(self.plan.tables, self.plan.readings, strict=True)
        for number, (table, reading) in enumerate(sources):
            verdict = self._verdict(reading)
            picks = self._scannable(table, reading)
            if picks is not None:
                self._scan(engine, number, reading, verdict, picks)
                continue
            columns = list(dict.fromkeys(reading.columns.values()))
            for batch in table.batches(columns, self._sift(engine, reading, verdict)):
                self._take(engine, number, reading, verdict, batch)
                if self.sink.full:
                    last = int(batch.rows[-1]) if len(batch.rows) else 0
                    if table.total == last + 1 and number + 1 == len(self.plan.tables):
                        return ""
                    return f"limit reached: nothing after row {last} of {table.name} was read"
        return ""

    def _sift(self, engine: "LinkEngine", reading: Reading, verdict: Verdict) -> "Sift | None":
        """What the filter's conditions ask, to be read before the rest where reading costs."""
        from laionkit.backends.source_tables import Sift

        asked = self.preparer.asked_columns(reading, links=self.sink.ledger.full)
        if verdict.conditions == "0" or not asked:
            return None
        first = replace(verdict, code=verdict.conditions, kept_null={})

        def wanted(batch: "Batch") -> bool:
            rows, _ = self.preparer.prepare(reading, batch)
            return bool((engine.judge(rows, first, values=False).codes == 0).any())

        return Sift(asked, wanted)

    def _scannable(self, table: "SourceTable", reading: Reading) -> str | None:
        """SQL that reads a local parquet file under canonical names, where that is all it takes."""
        config = self.config
        stops_early = config.limit is not None and self.sink.order is None
        if table.name not in self.plan.scannable or stops_early or config.keep_keys:
            return None
        if self.preparer.early_hash:
            return None
        return scan_columns(table.schema, reading, self.plan.schema)

    def _scan(
        self, engine: "LinkEngine", number: int, reading: Reading, verdict: Verdict, picks: str
    ) -> None:
        """Judge a source inside the engine, which reads what the verdict needs and no more."""
        table, schema, sink = self.plan.tables[number], self.plan.schema, self.sink
        for found in engine.scan(table.name, picks, verdict, schema, full=sink.ledger.full):
            self._note_nulls(found.kept_null)
            kept, lost = 0, sink.count(found.counts)
            if found.dropped is not None:
                lost = sink.note(number, found.dropped)
            if found.kept is not None:
                rows = found.kept.select(schema.names).cast(schema)
                rows = self.preparer.finish(reading, rows)
                kept = sink.keep(number, rows, found.kept[ROW].to_numpy())
            self.runner.progress.emit(SamplesDone(METADATA, Counts.of(kept, lost.reasons)))

    def _verdict(self, reading: Reading) -> Verdict:
        numbers = [f.name for f in self.plan.schema if _is_number(f.type)]
        sample = (self.config.sample, self.config.seed) if self.config.sample else None
        return build_verdict(
            self.terms,
            self.reasons,
            null=self.config.null,
            has_url="url" in reading.columns,
            similarity_limit=reading.similarity_limit if "similarity" in reading.columns else None,
            numbers=numbers,
            lists=tuple(self.preparer.lists),
            sample=sample,
        )

    def _take(
        self,
        engine: "LinkEngine",
        number: int,
        reading: Reading,
        verdict: Verdict,
        batch: "Batch",
    ) -> None:
        """Judge a batch that came through arrow."""
        sink, preparer = self.sink, self.preparer
        rows, matched = preparer.prepare(reading, batch)
        self.matched += matched
        judged = engine.judge(rows, verdict, values=sink.ledger.full)
        self._note_nulls(judged.kept_null)
        sink.drop_unreadable(number, batch)
        rows = sink.drop(number, rows, batch.rows, judged.codes, judged.values)
        keep = judged.codes == 0
        rows = rows.drop_columns([name for name in LISTS if name in rows.column_names])
        rows = preparer.finish(reading, preparer.with_keys(rows, batch, keep))
        kept = sink.keep(number, rows, batch.rows[keep])
        lost = sink.lost(judged.codes, len(batch.bad), int(keep.sum()) - kept)
        self.runner.progress.emit(SamplesDone(METADATA, Counts.of(kept, lost.reasons)))

    def _note_nulls(self, kept_null: dict[str, int]) -> None:
        for name, count in kept_null.items():
            self.kept_null[name] = self.kept_null.get(name, 0) + count


def _without_pictures(rows: pa.Table) -> pa.Table:
    """Rows but for those of picture folders, which are compared picture by picture (rerun.py)."""
    if "path_stamp" not in rows.column_names:
        return rows
    return rows.filter(pc.is_null(rows["path_stamp"]))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
