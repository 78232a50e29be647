"""What only all rows together can tell: duplicates, the best share, the limit, a shuffled order.

One narrow row a link (its ordinal, a 128-bit md5 of what makes it unique, its host) and the links
themselves are written to disk as they come. At the end DuckDB judges the narrow rows, and the links
are read back in the order of ordinals. Memory does not grow with the rows: while links come, none
is kept; then DuckDB has a small share and spills, the links stream, a shuffle goes through buckets.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from laionkit.core.schemas import Reason
from laionkit.ops.laion_schemas import INNER_PREFIX
from laionkit.ops.link_filters import Reasons
from laionkit.ops.predicates import quote_name, quote_text
from laionkit.stages.metadata.buckets import COMPRESSED, Buckets
from laionkit.stages.metadata.engine import WHOLE_TIMEOUT_S, LinkEngine

VERDICT_ROWS = 65_536
GROUP_ROWS = 131_072
# Of --memory-mb: while all rows are judged, what reading them held is not all given back yet.
_SHARE = 3
_MB_A_THREAD = 128
_ORDINAL, _KEY = INNER_PREFIX + "ordinal", INNER_PREFIX + "k"
_TWO_64 = 2**64
_HOST = r"'^[^:]+://(?:[^/?#@]*@)?([^/?#:]+)'"
_NARROW = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("high", pa.uint64()),
        ("low", pa.uint64()),
        ("host", pa.uint64()),
        ("top", pa.float64()),
    ]
)
_KEY_OF_HALVES = "(high::UHUGEINT << 64) | low::UHUGEINT"


@dataclass(frozen=True)
class OrderSteps:
    """The global steps of a run. `top`: (column, share); `null_top` keeps rows that lack it."""

    dedup: str = "none"
    against_existing: bool = False
    top: tuple[str, float] | None = None
    null_top: bool = False
    limit: int | None = None
    shuffle: bool = False
    seed: int = 0

    @property
    def needed(self) -> bool:
        """Whether any step needs all rows; a limit alone does not."""
        return bool(self.dedup != "none" or self.against_existing or self.top or self.shuffle)


class LinkOrder:
    """Collects rows in order, then gives them back: kept ones in their final order, and dropped."""

    def __init__(
        self,
        engine: LinkEngine,
        scratch: Path,
        steps: OrderSteps,
        schema: pa.Schema,
        reasons: Reasons,
    ) -> None:
        """Collect rows of `schema` into `scratch`."""
        self.engine, self.scratch, self.steps, self.reasons = engine, scratch, steps, reasons
        self._names = set(schema.names)
        self._link = _link_sql(self._names)
        self._schema = schema
        self._rows = 0
        self._stack = contextlib.ExitStack()
        sink = self._stack.enter_context(pa.OSFile(str(scratch / "spool.arrow"), "wb"))
        self._spool = self._stack.enter_context(ipc.new_stream(sink, schema, options=COMPRESSED))
        self._narrow, self._existing = (
            self._stack.enter_context(_NarrowFile(path)) for path in self._narrow_files()
        )

    def add(self, rows: pa.Table) -> None:
        """Take the next rows."""
        if rows.num_rows:
            self._spool.write_table(rows)
            self._narrow.add(self._narrowed(rows))
            self._rows += rows.num_rows

    def add_existing(self, rows: pa.Table) -> None:
        """Take rows of the work list that is there; what equals them is a duplicate."""
        for field in self._schema:
            if field.name not in rows.column_names:
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        self._existing.add(self._narrowed(rows))

    def settle(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield (rows, codes): kept rows (code 0) in their final order, and the dropped ones."""
        self._stack.close()
        if not self.steps.shuffle:
            with self._judged() as con:
                yield from self._in_order(_verdicts(con, "0::BIGINT"))
            return
        with Buckets(self.scratch, self._schema, self._rows) as buckets:
            with self._judged() as con:
                self._place(con)
                yield from self._thrown(_verdicts(con, "place"), buckets)
            for rows in buckets.read():
                yield rows, np.zeros(rows.num_rows, np.uint16)

    @contextlib.contextmanager
    def _judged(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own whose table ``judged`` has each row's verdict."""
        megabytes = self.engine.memory_mb // _SHARE
        paths = [str(path) for path in self._narrow_files()]
        with contextlib.closing(duckdb.connect()) as con:
            con.execute("SET enable_progress_bar = false")
            con.execute(f"SET memory_limit = '{megabytes}MB'")
            most = con.execute("SELECT current_setting('threads')").fetchall()[0][0]
            con.execute(f"SET threads = {max(1, min(most, megabytes // _MB_A_THREAD))}")
            con.execute("SET temp_directory = $1", [str(self.scratch / "order")])
            con.execute("SET allowed_paths = $1", [paths])
            con.execute("SET enable_external_access = false")
            for name, path in zip(("narrow", "existing"), paths, strict=True):
                con.execute(
                    f"CREATE VIEW {name} AS SELECT ordinal, {_KEY_OF_HALVES} AS k, host, top "
                    f"FROM read_parquet({quote_text(path)})"
                )
            with self.engine.deadline(WHOLE_TIMEOUT_S, con):
                con.execute(f"CREATE TABLE judged AS {self._judged_sql(con)}")
                self._limit(con)
                yield con

    def _narrow_files(self) -> tuple[Path, Path]:
        return self.scratch / "narrow.parquet", self.scratch / "existing.parquet"

    def _narrowed(self, rows: pa.Table) -> pa.Table:
        ordinals = pa.array(np.arange(self._rows, self._rows + rows.num_rows))
        host = f"md5_number_lower(regexp_extract({self._link}, {_HOST}, 1))"
        top = (
            f"nullif({quote_name(self.steps.top[0])}::DOUBLE, 'nan')" if self.steps.top else "NULL"
        )
        found = self.engine.query(
            f"SELECT {_ORDINAL} AS ordinal, ({_KEY} >> 64)::UBIGINT AS high, "
            f"({_KEY} & {_TWO_64 - 1}::UHUGEINT)::UBIGINT AS low, "
            f"{host if self.steps.shuffle else 'NULL'}::UBIGINT AS host, {top}::DOUBLE AS top "
            f"FROM (SELECT *, {self._key_sql()}::UHUGEINT AS {_KEY} FROM fresh)",
            rows.append_column(_ORDINAL, ordinals),
        )
        return found.cast(_NARROW)

    def _key_sql(self) -> str:
        if self.steps.dedup == "hash":
            return "CASE WHEN hash IS NOT NULL THEN md5_number(hash::VARCHAR) END"
        if self.steps.dedup == "url+caption":
            return f"md5_number({self._link} || chr(10) || coalesce(caption, ''))"
        if self.steps.dedup == "url" or self.steps.against_existing:
            return f"md5_number({self._link})"
        return "NULL"

    def _judged_sql(self, con: duckdb.DuckDBPyConnection) -> str:
        cases, joins = [], ""
        if self.steps.top:
            column, share = self.steps.top
            if not self.steps.null_top:
                cases.append(f"WHEN n.top IS NULL THEN {self.reasons.code(f'null:{column}')}")
            name = f"top {100 * share:g} % by {column}"
            cut = _cut(con, share)
            if cut is not None:
                value, ordinal = cut
                cases.append(
                    f"WHEN n.top < {value!r} OR (n.top = {value!r} AND n.ordinal > {ordinal}) "
                    f"THEN {self.reasons.code(name)}"
                )
        duplicate = self.reasons.code(Reason.DUPLICATE)
        if self.steps.against_existing:
            joins += " LEFT JOIN (SELECT DISTINCT k FROM existing) e ON n.k = e.k"
            cases.append(f"WHEN e.k IS NOT NULL THEN {duplicate}")
        if self.steps.dedup != "none":
            passed = f"CASE {' '.join(cases)} ELSE 0 END = 0" if cases else "true"
            firsts = (
                f"SELECT n.k, min(n.ordinal) AS first FROM narrow n{joins} "
                f"WHERE n.k IS NOT NULL AND {passed} GROUP BY n.k HAVING count(*) > 1"
            )
            joins += f" LEFT JOIN ({firsts}) f ON n.k = f.k"
            cases.append(f"WHEN f.first <> n.ordinal THEN {duplicate}")
        code = f"CASE {' '.join(cases)} ELSE 0 END" if cases else "0"
        return f"SELECT n.ordinal, n.host, ({code})::USMALLINT AS code FROM narrow n{joins}"

    def _limit(self, con: duckdb.DuckDBPyConnection) -> None:
        if self.steps.limit is None:
            return
        first_over = con.execute(
            "SELECT ordinal FROM judged WHERE code = 0 ORDER BY ordinal "
            f"LIMIT 1 OFFSET {self.steps.limit}"
        ).fetchall()
        if first_over:
            over = self.reasons.code(Reason.OVER_LIMIT)
            con.execute(
                f"UPDATE judged SET code = {over} WHERE code = 0 AND ordinal >= {first_over[0][0]}"
            )

    def _place(self, con: duckdb.DuckDBPyConnection) -> None:
        """Give each kept row its place: a host's n rows stand one in each n-th of the run."""
        seed = quote_text(f"{self.steps.seed}:")
        con.execute(
            "CREATE OR REPLACE TABLE judged AS WITH drawn AS (SELECT ordinal, code, host, "
            f"md5_number_lower({seed} || ordinal::VARCHAR) AS r FROM judged), spread AS ("
            "SELECT ordinal, r, (row_number() OVER (PARTITION BY host ORDER BY r, ordinal) - 1 "
            f"+ md5_number_lower({seed} || host::VARCHAR)::DOUBLE / {_TWO_64}) "
            "/ count(*) OVER (PARTITION BY host) AS x FROM drawn WHERE code = 0) "
            "SELECT ordinal, 0::USMALLINT AS code, row_number() OVER (ORDER BY x, r, ordinal) - 1 "
            "AS place FROM spread UNION ALL SELECT ordinal, code, NULL FROM judged WHERE code > 0"
        )

    def _in_order(self, verdicts: pa.RecordBatchReader) -> Iterator[tuple[pa.Table, np.ndarray]]:
        columns = _Lockstep(verdicts)
        for rows in self._read_spool():
            codes, _ = columns.take(rows.num_rows)
            yield rows, codes

    def _thrown(
        self, verdicts: pa.RecordBatchReader, buckets: Buckets
    ) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Throw kept rows into buckets by their place; yield the others."""
        columns = _Lockstep(verdicts)
        for rows in self._read_spool():
            codes, places = columns.take(rows.num_rows)
            kept = codes == 0
            buckets.add(rows.filter(pa.array(kept)), places[kept])
            if not kept.all():
                yield rows.filter(pa.array(~kept)), codes[~kept]

    def _read_spool(self) -> Iterator[pa.Table]:
        path = self.scratch / "spool.arrow"
        with pa.OSFile(str(path), "rb") as source, ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
        path.unlink()


class _NarrowFile:
    """A parquet file of narrow rows in row groups large enough that its footer stays small."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, _NARROW, compression="lz4")
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> "_NarrowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._writer.close()

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        if sum(table.num_rows for table in self._waiting) >= GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting = []


class _Lockstep:
    """Codes and places in the order of ordinals, as many at a time as rows are read."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._reader = reader
        self._codes = np.empty(0, np.uint16)
        self._places = np.empty(0, np.int64)

    def take(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        while len(self._codes) < rows:
            batch = self._reader.read_next_batch()
            places = batch["place"].fill_null(-1).to_numpy(zero_copy_only=False)
            self._codes = np.concatenate([self._codes, batch["code"].to_numpy()])
            self._places = np.concatenate([self._places, places])
        codes, places = self._codes[:rows], self._places[:rows]
        self._codes, self._places = self._codes[rows:], self._places[rows:]
        return codes, places


def _cut(con: duckdb.DuckDBPyConnection, share: float) -> tuple[float, int] | None:
    """The last row of the best share, rounded up: its value and ordinal."""
    found: list[tuple[float, int]] = con.execute(
        "SELECT top, ordinal FROM narrow WHERE top IS NOT NULL ORDER BY top DESC, ordinal "
        "LIMIT 1 OFFSET "
        f"(SELECT greatest(ceil(count(top) * {share!r})::BIGINT - 1, 0) FROM narrow)"
    ).fetchall()
    return found[0] if found else None


def _verdicts(con: duckdb.DuckDBPyConnection, place: str) -> pa.RecordBatchReader:
    return con.sql(
        f"SELECT ordinal, code, {place} AS place FROM judged ORDER BY ordinal"
    ).to_arrow_reader(VERDICT_ROWS)


def _link_sql(names: set[str]) -> str:
    """SQL of what names a row's picture: its link, or its path with the state of the file."""
    path = "path || ':' || coalesce(path_stamp, '')" if "path_stamp" in names else "path"
    links = [sql for name, sql in (("url", "url"), ("path", path)) if name in names]
    return f"coalesce({', '.join(links)})"
