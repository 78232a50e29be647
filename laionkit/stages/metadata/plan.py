"""The sources of one run, opened: how each is read, and the columns of what comes out."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from laionkit.core.config import fingerprint
from laionkit.core.errors import ConfigError, InputError, did_you_mean
from laionkit.core.keys import KeyScheme
from laionkit.ops import link_rows
from laionkit.ops.laion_schemas import Reading, detect
from laionkit.ops.predicates import Term, parse_where, quote_name
from laionkit.ops.presets import choose_preset
from laionkit.stages.metadata.config import MetadataConfig

if TYPE_CHECKING:
    from laionkit.backends.picture_folders import PictureTable
    from laionkit.backends.source_tables import SourceTable

# A row of text is never shorter; it bounds the rows of a file whose rows nobody counted.
_LEAST_ROW_BYTES = 12
_MOST_COMPRESSION = 20
# What the engine calls the number of a row in a file; a file that has it is read otherwise.
_ROW_NUMBER = "file_row_number"
_ENGINE_NUMBERS = {
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
}
_ENGINE_TYPES = {**_ENGINE_NUMBERS, pa.string(): "VARCHAR", pa.bool_(): "BOOLEAN"}


@dataclass(frozen=True)
class Joined:
    """A table to join: `on` is its column of keys, `added` maps our columns to its others."""

    table: "SourceTable"
    on: str
    added: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """The sources, opened.

    `identities` names the content of each, `pictures` the folders, `scannable` the local parquet
    files that the engine can read where they lie, `stamps` the state of each local file, `beside`
    the content of the lists and of the joined table.
    """

    tables: list["SourceTable"]
    readings: list[Reading]
    identities: dict[str, str]
    sizes: dict[str, int]
    pictures: frozenset[str]
    scannable: frozenset[str]
    stamps: dict[str, tuple[int, int]]
    beside: dict[str, str]
    schema: pa.Schema
    joined: Joined | None

    @classmethod
    def make(
        cls, sources: Sequence[str], config: MetadataConfig, tell: Callable[[str], None]
    ) -> "Plan":
        """Find and open every source, and detect what it is; `tell` hears of downloads."""
        from laionkit.backends.downloads import keep_files
        from laionkit.backends.open_table import open_table
        from laionkit.backends.sources import SourceFile, find_sources

        tables: list[SourceTable] = []
        identities, sizes = {}, {}
        pictures, scannable = set(), set()
        stamps = {}
        found = find_sources(sources)
        if config.download:
            found = keep_files(found, config.download, tell)
        for source in found:
            table = open_table(source)
            tables.append(table)
            if isinstance(source, SourceFile):
                identities[source.name] = source.identity
                if source.is_local:
                    stamps[source.name] = _stamp(source.name)
                if source.is_local and source.format == "parquet" and not source.compression:
                    scannable.add(source.name)
                sizes[source.name] = source.size * (_MOST_COMPRESSION if source.compression else 1)
            else:
                states = cast("PictureTable", table).states()
                identities[source.name] = fingerprint(states.to_pydict())
                pictures.add(source.name)
        readings = [read_as(table, config) for table in tables]
        schema = _output_schema(tables, readings)
        joined = _open_join(config, schema) if config.join else None
        return cls(
            tables,
            readings,
            identities,
            sizes,
            frozenset(pictures),
            frozenset(scannable),
            stamps,
            _identities_beside(config),
            schema if joined is None else _with_joined(schema, joined),
            joined,
        )

    def require_unchanged(self) -> None:
        """Refuse what was read of a local file that was written to meanwhile."""
        for name, stamp in self.stamps.items():
            if _stamp(name) != stamp:
                raise InputError(f"{name} changed while it was read: run again")

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

    def filters(self, config: MetadataConfig) -> tuple[list[Term], tuple[str, float] | None]:
        """The conditions of the preset, then of `where`; and the preset's best share.

        Raises ConfigError for a column that no source has, or that is null in all.
        """
        there = {name: str(self.schema.field(name).type) for name in self._filled()}
        terms: list[Term] = []
        top = None
        if config.preset:
            for step in choose_preset(config.preset, there, config.language).steps:
                if step.top is None:
                    terms += parse_where(step.condition, there).terms
                else:
                    top = (step.column, step.top)
        if config.where:
            terms += parse_where(config.where, there).terms
        return terms, top

    def _filled(self) -> list[str]:
        """Columns that a source has: not the caption or hash that laionkit adds."""
        given = {name.lower() for reading in self.readings for name in reading.columns}
        return [n for n in self.schema.names if n.lower() in given or n not in ("caption", "hash")]


def _stamp(name: str) -> tuple[int, int]:
    """Size and time of change of a local file; of one that is gone, what none has."""
    try:
        found = Path(name).stat()
    except FileNotFoundError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def read_as(table: "SourceTable", config: MetadataConfig) -> Reading:
    """Decide how one source is read, as the settings say."""
    reading = detect(
        table.schema,
        table.head(),
        table.name,
        forced=config.links_schema,
        url_column=config.url_column,
        caption_column=config.caption_column,
    )
    if config.keep_keys and config.keep_keys not in table.schema.names:
        hint = did_you_mean(config.keep_keys, table.schema.names)
        raise ConfigError(
            f"--keep-keys {config.keep_keys}: {table.name} has no such column{hint}; "
            f"it has {', '.join(table.schema.names)}"
        )
    return reading


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


def check_filters(plan: Plan, config: MetadataConfig) -> None:
    """Make sure that every condition fits the columns. Raises ConfigError, before any work."""
    if config.dedup == "hash" and "hash" not in plan.schema.names:
        raise ConfigError("--dedup hash: a source without links has no hash; give --dedup url")
    terms, _ = plan.filters(config)
    if terms:
        from laionkit.stages.metadata.engine import LinkEngine

        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="laionkit-check-"))
            engine = LinkEngine(Path(scratch), config.memory_mb)
            stack.enter_context(contextlib.closing(engine)).check(terms, plan.schema)


def scan_columns(given: pa.Schema, reading: Reading, schema: pa.Schema) -> str | None:
    """SQL that reads a parquet file's columns into `schema`; None where a cast is not plain.

    Plain is what the engine does as ``link_rows.repair`` does: the same type, or between numbers.
    """
    by_lower = {name.lower(): theirs for name, theirs in reading.columns.items()}
    lower = {name.lower() for name in given.names}
    doubled = len(lower) < len(given.names) or _ROW_NUMBER in lower
    picks = []
    for field in schema:
        theirs, ours = by_lower.get(field.name.lower()), quote_name(field.name)
        kind = _ENGINE_TYPES.get(field.type)
        if kind is None or doubled:
            return None
        if theirs is None:
            picks.append(f"NULL::{kind} AS {ours}")
            continue
        found = given.field(theirs).type
        if found == field.type:
            picks.append(f"{quote_name(theirs)} AS {ours}")
        elif found in _ENGINE_NUMBERS and field.type in _ENGINE_NUMBERS:
            picks.append(f"TRY_CAST({quote_name(theirs)} AS {kind}) AS {ours}")
        else:
            return None
    return ", ".join(picks)


def _open_join(config: MetadataConfig, schema: pa.Schema) -> Joined:
    """Open the table to join to rows of `schema`."""
    from laionkit.backends.open_table import open_table
    from laionkit.backends.sources import SourceFile, find_sources

    found = find_sources([config.join])
    if len(found) != 1 or not isinstance(found[0], SourceFile):
        raise InputError(f"--join {config.join}: name one table")
    table = open_table(found[0])
    names = list(table.schema.names)
    on = next((name for name in names if name.lower() == config.on), None)
    if on is None:
        raise ConfigError(
            f"--on {config.on}: {config.join} has no such column; it has {', '.join(names)}"
        )
    if config.on not in schema.names:
        raise ConfigError(f"--on {config.on}: the sources have no such column")
    taken = {name.lower() for name in schema.names}
    added = {}
    for name in names:
        if name != on:
            ours = link_rows.joined_name(name, taken)
            taken.add(ours.lower())
            added[ours] = name
    return Joined(table, on, added)


def _with_joined(schema: pa.Schema, joined: Joined) -> pa.Schema:
    for ours, theirs in joined.added.items():
        kind = link_rows.output_type(ours, joined.table.schema.field(theirs).type)
        schema = schema.append(pa.field(ours, kind))
    return schema


def _identities_beside(config: MetadataConfig) -> dict[str, str]:
    """What names the content of the lists and of the joined table."""
    from laionkit.backends.sources import SourceFile, find_sources

    names = (*config.blocklist, *config.optout, *filter(None, [config.join]))
    files = (source for source in find_sources(names) if isinstance(source, SourceFile))
    return {file.name: file.identity for file in files}
