"""What only all rows together can tell: duplicates, the best share, the limit, a shuffled order.

One narrow row a link lies in DuckDB (its ordinal, a 128-bit md5 of what makes it unique, its
host); the links themselves lie in a spool on disk and are read back in the order of ordinals.
Memory is bounded at every size: DuckDB spills, the spool streams, a shuffle goes through buckets.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from laionkit.core.schemas import Reason
from laionkit.ops.laion_schemas import INNER_PREFIX
from laionkit.ops.link_filters import Reasons
from laionkit.ops.predicates import quote_name, quote_text
from laionkit.stages.metadata.engine import WHOLE_TIMEOUT_S, LinkEngine

BUCKET_ROWS = 262_144
MOST_BUCKETS = 200
_ORDINAL, _PLACE = INNER_PREFIX + "ordinal", INNER_PREFIX + "place"
_TWO_64 = "18446744073709551616"
_HOST = r"'^[^:]+://(?:[^/?#@]*@)?([^/?#:]+)'"
_COMPRESSED = ipc.IpcWriteOptions(compression="lz4")


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
        self._con = engine.connection
        self._names = set(schema.names)
        self._link = _link_sql(self._names)
        self._schema = schema
        self._stack = contextlib.ExitStack()
        sink = self._stack.enter_context(pa.OSFile(str(scratch / "spool.arrow"), "wb"))
        self._spool = self._stack.enter_context(ipc.new_stream(sink, schema, options=_COMPRESSED))
        self._rows = 0
        self._con.execute(
            "CREATE TABLE narrow (ordinal BIGINT, k UHUGEINT, host UBIGINT, top DOUBLE)"
        )
        self._con.execute("CREATE TABLE existing (k UHUGEINT)")

    def add(self, rows: pa.Table) -> None:
        """Take the next rows."""
        if not rows.num_rows:
            return
        self._spool.write_table(rows)
        ordinals = pa.array(np.arange(self._rows, self._rows + rows.num_rows))
        self._con.register("fresh", rows.append_column(_ORDINAL, ordinals))
        host = f"md5_number_lower(regexp_extract({self._link}, {_HOST}, 1))"
        top = (
            f"nullif({quote_name(self.steps.top[0])}::DOUBLE, 'nan')" if self.steps.top else "NULL"
        )
        with self.engine.deadline():
            self._con.execute(
                f"INSERT INTO narrow SELECT {_ORDINAL}, {self._key_sql()}, "
                f"{host if self.steps.shuffle else 'NULL'}, {top} FROM fresh"
            )
        self._con.unregister("fresh")
        self._rows += rows.num_rows

    def add_existing(self, rows: pa.Table) -> None:
        """Take rows of the work list that is there; what equals them is a duplicate."""
        missing = [f for f in self._schema if f.name not in rows.column_names]
        for field in missing:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        self._con.register("fresh", rows)
        with self.engine.deadline():
            self._con.execute(f"INSERT INTO existing SELECT {self._key_sql()} FROM fresh")
        self._con.unregister("fresh")

    def settle(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield (rows, codes): kept rows (code 0) in their final order, and the dropped ones."""
        self._stack.close()
        with self.engine.deadline(WHOLE_TIMEOUT_S):
            self._con.execute(f"CREATE TABLE judged AS {self._judged_sql()}")
            self._con.execute("DROP TABLE narrow")
            self._limit()
            if self.steps.shuffle:
                self._place()
            verdicts = self._con.sql(
                f"SELECT ordinal, code, {'place' if self.steps.shuffle else '0::BIGINT'} AS place "
                "FROM judged ORDER BY ordinal"
            ).to_arrow_reader(BUCKET_ROWS)
            yield from self._shuffled(verdicts) if self.steps.shuffle else self._in_order(verdicts)

    def _key_sql(self) -> str:
        if self.steps.dedup == "hash":
            return "CASE WHEN hash IS NOT NULL THEN md5_number(hash::VARCHAR) END"
        if self.steps.dedup == "url+caption":
            return f"md5_number({self._link} || chr(10) || coalesce(caption, ''))"
        if self.steps.dedup == "url" or self.steps.against_existing:
            return f"md5_number({self._link})"
        return "NULL"

    def _judged_sql(self) -> str:
        cases, joins = [], ""
        if self.steps.top:
            column, share = self.steps.top
            if not self.steps.null_top:
                cases.append(f"WHEN n.top IS NULL THEN {self.reasons.code(f'null:{column}')}")
            name = f"top {100 * share:g} % by {column}"
            cut = self._cut(share)
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

    def _cut(self, share: float) -> tuple[float, int] | None:
        """The last row of the best share, rounded up: its value and ordinal."""
        found: list[tuple[float, int]] = self._con.execute(
            "SELECT top, ordinal FROM narrow WHERE top IS NOT NULL ORDER BY top DESC, ordinal "
            "LIMIT 1 OFFSET "
            f"(SELECT greatest(ceil(count(top) * {share!r})::BIGINT - 1, 0) FROM narrow)"
        ).fetchall()
        return found[0] if found else None

    def _limit(self) -> None:
        if self.steps.limit is None:
            return
        first_over = self._con.execute(
            "SELECT ordinal FROM judged WHERE code = 0 ORDER BY ordinal "
            f"LIMIT 1 OFFSET {self.steps.limit}"
        ).fetchall()
        if first_over:
            over = self.reasons.code(Reason.OVER_LIMIT)
            self._con.execute(
                f"UPDATE judged SET code = {over} WHERE code = 0 AND ordinal >= {first_over[0][0]}"
            )

    def _place(self) -> None:
        """Give each kept row its place: a host's n rows stand one in each n-th of the run."""
        seed = quote_text(f"{self.steps.seed}:")
        self._con.execute(
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

    def _shuffled(self, verdicts: pa.RecordBatchReader) -> Iterator[tuple[pa.Table, np.ndarray]]:
        columns = _Lockstep(verdicts)
        size = max(BUCKET_ROWS, -(-self._rows // MOST_BUCKETS))
        with _Buckets(self.scratch, self._schema, size) as buckets:
            for rows in self._read_spool():
                codes, places = columns.take(rows.num_rows)
                kept = codes == 0
                buckets.add(rows.filter(pa.array(kept)), places[kept])
                if not kept.all():
                    yield rows.filter(pa.array(~kept)), codes[~kept]
            for rows in buckets.read():
                yield rows, np.zeros(rows.num_rows, np.uint16)

    def _read_spool(self) -> Iterator[pa.Table]:
        path = self.scratch / "spool.arrow"
        with pa.OSFile(str(path), "rb") as source, ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
        path.unlink()


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


class _Buckets:
    """Rows thrown into files by their final place, then read back file by file, each sorted."""

    def __init__(self, scratch: Path, schema: pa.Schema, size: int) -> None:
        self.scratch, self.size = scratch, size
        self.schema = schema.append(pa.field(_PLACE, pa.int64()))
        self._files: dict[int, tuple[contextlib.ExitStack, ipc.RecordBatchStreamWriter]] = {}

    def __enter__(self) -> "_Buckets":
        return self

    def __exit__(self, *_: object) -> None:
        for stack, _writer in self._files.values():
            stack.close()

    def add(self, rows: pa.Table, places: np.ndarray) -> None:
        rows = rows.append_column(_PLACE, pa.array(places))
        numbers = places // self.size
        order = np.argsort(numbers, kind="stable")
        rows = rows.take(pa.array(order)).combine_chunks()
        present, starts = np.unique(numbers[order], return_index=True)
        ends = [*starts[1:].tolist(), len(order)]
        for number, start, end in zip(present.tolist(), starts.tolist(), ends, strict=True):
            self._writer(number).write_table(rows.slice(start, end - start))

    def read(self) -> Iterator[pa.Table]:
        for number in sorted(self._files):
            self._files[number][0].close()
            path = self._path(number)
            with pa.OSFile(str(path), "rb") as source, ipc.open_stream(source) as reader:
                rows = reader.read_all()
            path.unlink()
            yield rows.sort_by(_PLACE).drop_columns(_PLACE)

    def _writer(self, number: int) -> ipc.RecordBatchStreamWriter:
        if number not in self._files:
            stack = contextlib.ExitStack()
            sink = stack.enter_context(pa.OSFile(str(self._path(number)), "wb"))
            writer = stack.enter_context(ipc.new_stream(sink, self.schema, options=_COMPRESSED))
            self._files[number] = stack, writer
        return self._files[number][1]

    def _path(self, number: int) -> Path:
        return self.scratch / f"bucket-{number}.arrow"


def _link_sql(names: set[str]) -> str:
    """SQL of what names a row's picture: its link, or its path with the state of the file."""
    path = "path || ':' || coalesce(path_stamp, '')" if "path_stamp" in names else "path"
    links = [sql for name, sql in (("url", "url"), ("path", path)) if name in names]
    return f"coalesce({', '.join(links)})"
