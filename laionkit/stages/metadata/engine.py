"""DuckDB over batches of links: verdicts, lists, joins, and what only all rows together can tell.

Memory is bounded by the engine's limit; tables lie in a scratch folder. Only SQL of our own making
and terms that ``parse_where`` printed reach it, and it can open no file.
"""

import contextlib
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.errors import ConfigError, StageFailed
from laionkit.ops.laion_schemas import INNER_PREFIX
from laionkit.ops.link_filters import CODE, PAST_NULL, ROW, VALUE, Verdict
from laionkit.ops.predicates import Term, quote_name, quote_text

BATCH_TIMEOUT_S = 300.0
WHOLE_TIMEOUT_S = 86_400.0
# Few enough that the memory of one batch serves the next: of 131,072 rows, every batch's came anew
# from the system, a sixth of what it costs to read them.
SCAN_ROWS = 20_480
_AT = INNER_PREFIX + "at"
_HOST = r"'^[^:]+://(?:[^/?#@]*@)?([^/?#:]+)'"


@dataclass(frozen=True)
class Judged:
    """Codes of a batch's rows, the values of the dropped ones, nulls kept by column."""

    codes: np.ndarray
    values: pa.ChunkedArray | None
    kept_null: dict[str, int]


@dataclass(frozen=True)
class Scanned:
    """Some rows of a scan: kept ones with ROW, or what the ledger says of dropped ones.

    `dropped` has ROW, ``link``, CODE and VALUE; `counts` numbers by code the rows
    that are not written down.
    """

    kept: pa.Table | None = None
    dropped: pa.Table | None = None
    counts: dict[int, int] = field(default_factory=dict)
    kept_null: dict[str, int] = field(default_factory=dict)


class LinkEngine:
    """One connection for one run; `close` deletes nothing but frees the scratch folder."""

    def __init__(self, scratch: Path, memory_mb: int, files: Sequence[str] = ()) -> None:
        """Open an engine that spills into `scratch` and can read these local files, no other."""
        self.memory_mb = memory_mb
        self._con = duckdb.connect()
        self._scanning = self._con.cursor()  # streams while others insert on the connection
        self._con.execute(f"SET memory_limit = '{memory_mb}MB'")
        self._con.execute("SET temp_directory = $1", [str(scratch / "spill")])
        for con in (self._con, self._scanning):
            con.execute("SET enable_progress_bar = false")
            con.execute("SET python_enable_replacements = false")
        # Rows are streamed while those before are written: by default 10 MB wait.
        self._scanning.execute("SET streaming_buffer_size = '32MB'")
        # A parquet file's statistics leave NaN out, so that DuckDB folds isnan and
        # nullif(x, 'nan') to "there is none": a safety filter would let NaN pass.
        self._con.execute("SET disabled_optimizers = 'statistics_propagation'")
        self._con.execute("SET allowed_paths = $1", [list(files)])
        self._con.execute("SET enable_external_access = false")
        self._con.execute("SET lock_configuration = true")
        self._has_join: list[str] = []

    def query(self, sql: str, rows: pa.Table) -> pa.Table:
        """Run SQL of our own making over ``fresh``, which is `rows`."""
        self._con.register("fresh", rows)
        with self.deadline():
            found = self._con.sql(sql).to_arrow_table()
        self._con.unregister("fresh")
        return found

    def close(self) -> None:
        """Close the connection."""
        self._scanning.close()
        self._con.close()

    def check(self, terms: Sequence[Term], schema: pa.Schema) -> None:
        """Make sure that each term is a condition over these columns. Raises ConfigError."""
        self._register(schema.empty_table())
        for term in terms:
            try:
                sql = f"DESCRIBE SELECT ({term.sql}) FROM batch"
                kind = self._con.execute(sql).fetchall()[0]
            except duckdb.Error as error:
                raise ConfigError(f"--where {term.sql!r}: {_one_line(error)}") from error
            if kind[1] not in ("BOOLEAN", '"NULL"'):
                raise ConfigError(f"--where {term.sql!r} is no condition: it is not true or false")

    def judge(self, rows: pa.Table, verdict: Verdict, *, values: bool) -> Judged:
        """Apply a verdict to every row of a batch, in order."""
        self._register(rows)
        kept = ", ".join(
            f"count(*) FILTER ({CODE} = 0 AND {sql})" for sql in verdict.kept_null.values()
        )
        value = f"CASE WHEN {CODE} > 0 THEN {verdict.value} END" if values else "NULL"
        with self.deadline():
            found = self._con.sql(
                f"SELECT {CODE}::USMALLINT AS code, {value} AS value "
                f"FROM (SELECT *, {verdict.code} AS {CODE} FROM batch)"
            ).to_arrow_table()
            counts: tuple[int, ...] = ()
            if kept:
                counts = self._con.execute(
                    f"SELECT {kept} FROM (SELECT *, {verdict.code} AS {CODE} FROM batch)"
                ).fetchall()[0]
        nulls = dict(zip(verdict.kept_null, counts, strict=True))
        return Judged(
            found["code"].to_numpy(),
            found["value"] if values else None,
            {name: n for name, n in nulls.items() if n},
        )

    def scan(
        self, path: str, picks: str, verdict: Verdict, schema: pa.Schema, *, full: bool
    ) -> Iterator[Scanned]:
        """Judge a local parquet file where it lies, reading what a verdict needs and no more.

        `picks` is SQL of the columns of `schema`. What is dropped comes first, with `full` as rows
        in order, else as counts of what the conditions say. It tells whether a null let a row
        pass: where none did, the kept rows are found by a sieve that skips what none of them is
        in. They come last, in order.
        """
        source = f"read_parquet({quote_text(path)}, file_row_number = true)"
        rows = f"SELECT {picks}, file_row_number AS {ROW} FROM {source}"
        seen = f"SELECT *{_nan_as_null(schema)} FROM ({rows})"
        con = self._scanning
        with self.deadline(WHOLE_TIMEOUT_S, con):
            past_null = yield from (_dropped if full else _counted)(con, seen, verdict, schema)
            if not past_null:
                verdict = replace(verdict, sieve=verdict.sieve_without_nulls, kept_null={})
            seen = f"{seen} WHERE {verdict.sieve}"
            yield from _kept(con, seen, verdict, schema, count=not full)

    def load_list(self, name: str, tables: Iterator[pa.Table]) -> None:
        """Make a list ``name`` of (kind, value, place), where `tables` come from."""
        self._con.execute(f"CREATE TABLE IF NOT EXISTS {name} (kind VARCHAR, value VARCHAR)")
        for table in tables:
            self._con.register("given", table)
            self._con.execute(f"INSERT INTO {name} SELECT kind, value FROM given")
            self._con.unregister("given")

    def on_list(self, name: str, rows: pa.Table) -> pa.Array:
        """For each row, what on the list it matches; null where nothing does."""
        placed = rows.append_column(_AT, pa.array(np.arange(rows.num_rows)))
        self._con.register("looked", placed)
        kinds = {k for (k,) in self._con.execute(f"SELECT DISTINCT kind FROM {name}").fetchall()}
        looks = []
        if "url" in rows.column_names:
            if "url" in kinds:
                looks.append(f"SELECT {_AT}, 'url' AS kind, url AS value FROM looked")
            if "domain" in kinds:
                parts = f"string_split(lower(regexp_extract(url, {_HOST}, 1)), '.')"
                looks.append(
                    f"SELECT {_AT}, 'domain' AS kind, array_to_string(p[i:], '.') AS value FROM "
                    f"(SELECT {_AT}, p, unnest(range(1, len(p) + 1)) AS i "
                    f"FROM (SELECT {_AT}, {parts} AS p FROM looked))"
                )
        for column in rows.column_names:
            if column == "hash" and "hash" in kinds:
                looks.append(f"SELECT {_AT}, 'hash' AS kind, hash::VARCHAR AS value FROM looked")
            if column.lower().removeprefix("src_") in ("md5", "sha256") and "digest" in kinds:
                digest = f"lower({quote_name(column)})"
                looks.append(f"SELECT {_AT}, 'digest' AS kind, {digest} AS value FROM looked")
        out = np.full(rows.num_rows, None, object)
        if looks:
            with self.deadline():
                found = self._con.execute(
                    f"SELECT {_AT}, min(look.value) FROM ({' UNION ALL '.join(looks)}) AS look "
                    f"SEMI JOIN {name} AS l ON look.kind = l.kind AND look.value = l.value "
                    "GROUP BY 1"
                ).fetchall()
            for at, value in found:
                out[at] = value
        return pa.array(out, pa.string())

    def load_join(self, batches: Iterator[pa.Table], on: str) -> None:
        """Store the table to join, one row a value of `on`: the first."""
        for i, table in enumerate(batches):
            self._con.register("given", table)
            verb = "INSERT INTO joined_raw" if i else "CREATE TABLE joined_raw AS"
            self._con.execute(f"{verb} SELECT * FROM given")
            self._con.unregister("given")
            self._has_join = [name for name in table.column_names if name != on]
        with self.deadline():
            self._con.execute(
                f"CREATE TABLE joined AS SELECT * FROM joined_raw WHERE rowid IN "
                f"(SELECT min(rowid) FROM joined_raw WHERE {quote_name(on)} IS NOT NULL "
                f"GROUP BY {quote_name(on)})"
            )
            self._con.execute("DROP TABLE joined_raw")

    def join(self, rows: pa.Table, on: str) -> tuple[pa.Table, int]:
        """The joined columns for each row, null where nothing matches, and how many matched."""
        placed = rows.select([on]).append_column(_AT, pa.array(np.arange(rows.num_rows)))
        self._con.register("looked", placed)
        names = ", ".join(f"j.{quote_name(name)}" for name in self._has_join)
        key = quote_name(on)
        with self.deadline():
            found = self._con.sql(
                f"SELECT b.{_AT}, {names} FROM joined j JOIN looked b ON j.{key} = b.{key}"
            ).to_arrow_table()
        place = np.full(rows.num_rows, -1, np.int64)
        place[found[_AT].to_numpy()] = np.arange(found.num_rows)
        take = pa.array(place, mask=place < 0)
        return found.drop_columns(_AT).take(take), found.num_rows

    def _register(self, rows: pa.Table) -> None:
        """Show `rows` as ``batch``, NaN as null: DuckDB holds NaN for greater than all else."""
        self._con.register("raw_batch", rows)
        shown = _nan_as_null(rows.schema)
        self._con.execute(f"CREATE OR REPLACE TEMP VIEW batch AS SELECT *{shown} FROM raw_batch")

    @contextlib.contextmanager
    def deadline(
        self,
        timeout_s: float = BATCH_TIMEOUT_S,
        con: duckdb.DuckDBPyConnection | None = None,
    ) -> Iterator[None]:
        """Give up a query after the time allowed; turn the engine's errors into ours."""
        timer = threading.Timer(timeout_s, (con or self._con).interrupt)
        timer.start()
        try:
            yield
        except duckdb.InterruptException as error:
            raise ConfigError(f"a filter took more than {timeout_s:g} s: simplify it") from error
        except duckdb.OutOfMemoryException as error:
            raise StageFailed(f"metadata: {_one_line(error)}; raise --memory-mb") from error
        except duckdb.IOException as error:
            raise StageFailed(f"metadata: {_one_line(error)}") from error
        except duckdb.Error as error:
            raise ConfigError(f"--where: {_one_line(error)}") from error
        finally:
            timer.cancel()


def _counted(
    con: duckdb.DuckDBPyConnection, seen: str, verdict: Verdict, _: pa.Schema
) -> Generator[Scanned, None, bool]:
    """How many rows each condition drops; returns whether a null let one pass them."""
    if verdict.conditions == "0":
        return False
    found = con.execute(
        f"SELECT {CODE}, count(*) FROM (SELECT ({verdict.conditions_told})::SMALLINT "
        f"AS {CODE} FROM ({seen})) GROUP BY 1 ORDER BY 1"
    ).fetchall()
    yield Scanned(counts={code: rows for code, rows in found if code > 0})
    return any(code == PAST_NULL for code, _ in found)


def _dropped(
    con: duckdb.DuckDBPyConnection, seen: str, verdict: Verdict, schema: pa.Schema
) -> Generator[Scanned, None, bool]:
    """What the ledger says of each dropped row; returns whether a null let one be kept."""
    links = [name for name in ("url", "path") if name in schema.names]
    found = con.sql(
        f"SELECT {ROW}, coalesce({', '.join(links)}) AS link, {CODE}::SMALLINT AS {CODE}, "
        f"{verdict.value} AS {VALUE} FROM (SELECT *, {verdict.code_told} AS {CODE} FROM ({seen})) "
        f"WHERE {CODE} <> 0"
    )
    past_null = False
    for batch in found.to_arrow_reader(SCAN_ROWS):
        rows = pa.Table.from_batches([batch])
        is_dropped = rows[CODE].to_numpy() != PAST_NULL
        if not is_dropped.all():
            past_null, rows = True, rows.filter(pa.array(is_dropped))
        yield Scanned(dropped=rows)
    return past_null


def _kept(
    con: duckdb.DuckDBPyConnection, seen: str, verdict: Verdict, schema: pa.Schema, *, count: bool
) -> Iterator[Scanned]:
    """The rows that a verdict keeps; with `count`, how many a step after the conditions drops."""
    names = ", ".join(quote_name(name) for name in schema.names)
    nulls = "".join(
        f", ({CODE} = 0 AND {sql}) AS {INNER_PREFIX}null{i}"
        for i, sql in enumerate(verdict.kept_null.values())
    )
    found = con.sql(
        f"SELECT {names}, {ROW}, {CODE}::USMALLINT AS {CODE}{nulls} FROM (SELECT *, "
        f"{verdict.rest} AS {CODE} FROM ({seen}) WHERE {verdict.conditions} = 0)"
    )
    for batch in found.to_arrow_reader(SCAN_ROWS):
        rows = pa.Table.from_batches([batch])
        codes = rows[CODE].to_numpy()
        late = {c: n for c, n in enumerate(np.bincount(codes).tolist()) if c and n}
        kept_null = {
            name: pc.sum(rows[f"{INNER_PREFIX}null{i}"]).as_py() or 0
            for i, name in enumerate(verdict.kept_null)
        }
        if late:
            rows = rows.filter(pa.array(codes == 0))
        yield Scanned(
            kept=rows.select([*schema.names, ROW]),
            counts=late if count else {},
            kept_null={name: n for name, n in kept_null.items() if n},
        )


def _nan_as_null(schema: pa.Schema) -> str:
    """SQL that replaces NaN by null in ``SELECT *``."""
    names = [quote_name(f.name) for f in schema if pa.types.is_floating(f.type)]
    shown = ", ".join(f"nullif({name}, 'nan') AS {name}" for name in names)
    return f" REPLACE ({shown})" if shown else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n\nLINE")[0].split())[:300]
