"""metadata: any LAION-style table, or a folder of pictures, in; a clean work list out.

Row by row, in the order of the sources: columns get their canonical names and types, malformed
rows go to the ledger (``metadata/dropped.parquet``, one reason each), what is kept gets its key.
The stage is global: a killed run starts again clean, since nothing counts before its records.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from pydantic import PositiveInt

from laionkit.core.config import StageConfig
from laionkit.core.errors import ConfigError, StaleOutput
from laionkit.core.files import Folder, Written
from laionkit.core.keys import DEFAULT_SHARD_SIZE, KeyScheme
from laionkit.core.progress import Counts, SamplesDone, StageEnded, StageStarted
from laionkit.core.records import FileEntry, ShardRecord, StageRecords
from laionkit.core.runner import Runner, StageReport
from laionkit.core.schemas import METADATA, Reason
from laionkit.core.worklist import PART_ROLE, unfinished_batches
from laionkit.core.worklist_parts import Part, PartWriter
from laionkit.ops import link_rows
from laionkit.ops.laion_schemas import Reading, detect

if TYPE_CHECKING:
    from laionkit.backends.source_tables import Batch, SourceTable

LEDGER_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),
    ]
)
# A row of text is never shorter; it bounds the rows of a file whose rows nobody counted.
_LEAST_ROW_BYTES = 12
_MOST_COMPRESSION = 20


class MetadataConfig(StageConfig):
    """How sources become a work list."""

    schema_name: str = "auto"
    """The published set that the sources are of (laion-raw, laion-joined, improved-aesthetics,
    laion-aesthetic-v1, re-laion, datacomp, generic …); auto decides by names, types, content."""
    url_column: str = ""
    """The column that holds the links, where its name does not tell."""
    caption_column: str = ""
    """The column that holds the captions, where its name does not tell."""
    shard_size: PositiveInt = DEFAULT_SHARD_SIZE
    """Rows a shard, a power of ten; 10,000 is img2dataset's."""
    shard_digits: int | Literal["auto"] = "auto"
    """Digits of a shard's number, at least 5; auto fits the rows of the sources."""
    ledger: Literal["full", "counts"] = "full"
    """full: every dropped row with its reason in metadata/dropped.parquet; counts: numbers only."""


def metadata(
    sources: Sequence[str],
    dataset: str,
    config: MetadataConfig = MetadataConfig(),
    *,
    runner: Runner = Runner(),
) -> StageReport:
    """Read the sources into the dataset's work list; a second identical call finds it done.

    Raises InputError for a source that is not there or whose links cannot be found, and
    StaleOutput where the work list was made of other sources.
    """
    if runner.part != (1, 1):
        raise ConfigError("metadata is one piece of work: run it without --part")
    if not sources:
        raise ConfigError("name at least one SOURCE: a file, a folder, a glob or a URL")
    started = time.monotonic()
    folder = Folder(dataset)
    records = StageRecords(folder, METADATA)
    _clear_unfinished(records)
    plan = _Plan.make(sources, config)
    settled = runner.begin(records, config, auto={"shard_digits": plan.digits_needed(config)})
    made = list(records.all())
    if made:
        return _report(records, made, _require_same(folder, plan, made), started)
    for note in plan.notes():
        runner.note(METADATA, note)
    runner.progress.emit(StageStarted(METADATA, len(plan.tables), 0, plan.total()))
    run = _Batch(folder, plan, settled, runner)
    with run:
        parts = run.read_all()
    _commit(records, settled, plan, run, parts, time.monotonic() - started)
    runner.progress.emit(StageEnded(METADATA, run.counts, time.monotonic() - started))
    return _report(records, list(records.all()), 0, started, plan.notes())


@dataclass(frozen=True)
class _Plan:
    """The sources, opened: how each is read and the columns of what comes out."""

    tables: list["SourceTable"]
    readings: list[Reading]
    identities: dict[str, str]
    sizes: dict[str, int]
    schema: pa.Schema

    @classmethod
    def make(cls, sources: Sequence[str], config: MetadataConfig) -> "_Plan":
        """Find and open every source, and detect what it is."""
        from laionkit.backends.picture_folders import PictureTable
        from laionkit.backends.source_tables import open_table
        from laionkit.backends.sources import SourceFile, find_sources
        from laionkit.core.config import fingerprint

        tables: list[SourceTable] = []
        identities, sizes = {}, {}
        for source in find_sources(sources):
            if isinstance(source, SourceFile):
                tables.append(open_table(source))
                identities[source.name] = source.identity
                factor = _MOST_COMPRESSION if source.compression else 1
                sizes[source.name] = source.size * factor
            else:
                pictures = PictureTable(source)
                tables.append(pictures)
                identities[source.name] = fingerprint(pictures.listing())
        readings = [
            detect(
                table.schema,
                table.head(),
                table.name,
                forced=config.schema_name,
                url_column=config.url_column,
                caption_column=config.caption_column,
            )
            for table in tables
        ]
        return cls(tables, readings, identities, sizes, _output_schema(tables, readings))

    def total(self) -> int | None:
        """Rows in all, where every source knows."""
        totals = [table.total for table in self.tables]
        return None if None in totals else sum(t for t in totals if t is not None)

    def digits_needed(self, config: MetadataConfig) -> Callable[[], int]:
        """What resolves ``shard_digits=auto``: the digits that hold every row there may be."""

        def resolve() -> int:
            rows = sum(
                self.sizes[t.name] // _LEAST_ROW_BYTES if t.total is None else t.total
                for t in self.tables
            )
            return KeyScheme.for_rows(rows, config.shard_size).shard_digits

        return resolve

    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the sources are read, each once."""
        found = (note for reading in self.readings for note in reading.notes)
        return tuple(dict.fromkeys(found))


def _output_schema(tables: Sequence["SourceTable"], readings: Sequence[Reading]) -> pa.Schema:
    """The columns of the work list: those of all sources, with a caption and LAION's hash."""
    columns = []
    for table, reading in zip(tables, readings, strict=True):
        one = {
            ours: link_rows.output_type(ours, table.schema.field(theirs).type)
            for ours, theirs in reading.columns.items()
        }
        one.setdefault("caption", pa.string())
        if "url" in one:
            one.setdefault("hash", pa.int64())
        columns.append(one)
    return pa.schema(list(link_rows.merge_columns(columns).items()))


@dataclass
class _Batch:
    """One pass over the sources: rows kept go to parts, rows dropped to the ledger."""

    folder: Folder
    plan: _Plan
    config: MetadataConfig
    runner: Runner
    counts: Counts = field(default_factory=Counts)
    ledger: Written | None = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> "_Batch":
        scheme = KeyScheme(self.config.shard_size, int(self.config.shard_digits))
        writer = PartWriter(self.folder, scheme, self.plan.schema, 0, 0)
        self._writer = self._stack.enter_context(writer)
        self._ledger = self._stack.enter_context(_Ledger(self.folder, self.config))
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stack.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def read_all(self) -> list[Part]:
        """Read every source; return the finished parts."""
        for table, reading in zip(self.plan.tables, self.plan.readings, strict=True):
            for batch in table.batches(list(dict.fromkeys(reading.columns.values()))):
                self._take(table.name, reading, batch)
        self.ledger = self._ledger.finish()
        return self._writer.finish()

    def _take(self, source: str, reading: Reading, batch: "Batch") -> None:
        rows = link_rows.canonical(batch.table, reading, self.plan.schema)
        bad = link_rows.malformed(rows, reading)
        reasons: dict[str, int] = {}
        for reason in bad.reasons:
            reasons[reason] = reasons.get(reason, 0) + 1
        if batch.bad:
            reasons[Reason.MALFORMED_ROW] = reasons.get(Reason.MALFORMED_ROW, 0) + len(batch.bad)
        self._ledger.add(source, batch, rows, bad)
        kept = link_rows.without(rows, bad.rows)
        self._writer.add(kept)
        counts = Counts.of(kept.num_rows, reasons)
        self.counts = self.counts + counts
        self.runner.progress.emit(SamplesDone(METADATA, counts))


class _Ledger:
    """Writes ``metadata/dropped.parquet``, in the order of rows."""

    def __init__(self, folder: Folder, config: MetadataConfig) -> None:
        self.path = f"{METADATA}/dropped.parquet"
        self._folder, self._wanted = folder, config.ledger == "full"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Ledger":
        if self._wanted:
            import pyarrow.parquet as pq

            self._file = self._stack.enter_context(self._folder.create(self.path))
            self._rows = self._stack.enter_context(
                pq.ParquetWriter(self._file, LEDGER_SCHEMA, compression="zstd")
            )
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stack.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def add(self, source: str, batch: "Batch", rows: pa.Table, bad: link_rows.Malformed) -> None:
        """Write down a batch's dropped rows."""
        if not self._wanted or not (len(bad.rows) or batch.bad):
            return
        urls = rows["url"].take(pa.array(bad.rows)) if len(bad.rows) else pa.array([], pa.string())
        lines = [
            (int(number), url, reason, value)
            for number, url, reason, value in zip(
                batch.rows[bad.rows], urls.to_pylist(), bad.reasons, bad.details, strict=True
            )
        ]
        lines += [(n, None, Reason.MALFORMED_ROW.value, text) for n, text in batch.bad]
        lines.sort(key=lambda line: line[0])
        columns = [[source] * len(lines), *map(list, zip(*lines, strict=True))]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, LEDGER_SCHEMA, strict=True)]
        self._rows.write_table(pa.table(arrays, schema=LEDGER_SCHEMA))

    def finish(self) -> Written | None:
        """Close the file; None where none is wanted."""
        self._stack.close()
        if not self._wanted:
            return None
        return Written(self.path, self._file.size, self._file.digest.hexdigest())


def _clear_unfinished(records: StageRecords) -> None:
    """Forget a run that was cut off: its records and, where nothing is left, its config."""
    made = list(records.all())
    lost = unfinished_batches(made)
    for record in lost:
        records.folder.remove(f"{record.shard}.json")
    if len(lost) == len(made):
        records.folder.remove("_stage.json")


def _require_same(folder: Folder, plan: _Plan, made: Sequence[ShardRecord]) -> int:
    """How many parts are done where they were made of these very sources."""
    if made[0].inputs == plan.identities:
        return len(made)
    was, now = (", ".join(sorted(inputs)) for inputs in (made[0].inputs, plan.identities))
    if was == now:
        was = next(n for n in plan.identities if made[0].inputs.get(n) != plan.identities[n])
        now = "other content under that name"
    raise StaleOutput(
        f"{folder}/metadata was made of {was}; this run has {now}. "
        "Start over: --fresh (what is there is moved aside)."
    )


def _commit(
    records: StageRecords,
    config: MetadataConfig,
    plan: _Plan,
    run: _Batch,
    parts: Sequence[Part],
    seconds: float,
) -> None:
    """Write one record a part; the first one carries what was dropped."""
    made = records.made()
    assert made is not None, "begin() stores what a stage is made with"
    for i, part in enumerate(parts):
        files = {PART_ROLE: FileEntry.of(part.file)}
        if i == 0 and run.ledger is not None:
            files["dropped"] = FileEntry.of(run.ledger)
        records.commit(
            ShardRecord(
                shard=part.name,
                fingerprint=made.fingerprint(),
                inputs=plan.identities,
                counts=Counts.of(part.rows, run.counts.reasons if i == 0 else {}),
                files=files,
                extra={
                    "batch": 0,
                    "parts": len(parts),
                    "first_shard": part.first_shard,
                    "shards": part.shards,
                    "sets": sorted({reading.set_name for reading in plan.readings}),
                },
                effort=config.effort(),
                seconds=round(seconds / len(parts), 3),
                finished_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
        )


def _report(
    records: StageRecords,
    made: Sequence[ShardRecord],
    skipped: int,
    started: float,
    notes: tuple[str, ...] = (),
) -> StageReport:
    counts = Counts()
    for record in made:
        counts = counts + record.counts
    return StageReport(
        stage=METADATA,
        dataset=records.dataset.url,
        counts=counts,
        shards=len(made),
        skipped=skipped,
        seconds=round(time.monotonic() - started, 3),
        outputs=tuple(entry.path for record in made for entry in record.files.values()),
        notes=notes,
        extra={"shards_of_links": sum(record.extra.get("shards", 0) for record in made)},
    )
