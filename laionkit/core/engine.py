"""The query engine: a DuckDB connection with bounds on memory and time, and errors in one line."""

import contextlib
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import duckdb

from laionkit.core.errors import ConfigError, InputError, StageFailed

DEFAULT_MEMORY_MB = 1024
VIEW = "dataset"  # what filters are conditions over


class Engine:
    """Runs SQL of our own making. `where` names the data in errors."""

    def __init__(
        self, where: str, memory_mb: int, threads: int | None, timeout_s: float | None
    ) -> None:
        """Connect; `memory_mb` bounds the engine, `timeout_s` each query."""
        self.where, self.timeout_s = where, timeout_s
        self._con = connect(memory_mb, threads)

    def __enter__(self) -> Self:
        """Use as a context: the connection is closed at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; relations of it are no longer usable."""
        self._con.close()

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Run SQL of our own making; the connection holds its result.

        Raises InputError after `timeout_s`, StageFailed where memory does not do, ConfigError
        where a value cannot be converted as a filter asks.
        """
        with self._deadline():
            return self._con.execute(sql, list(parameters))

    def row(self, sql: str) -> tuple[Any, ...]:
        """The one row that SQL of our own making gives.

        Taken to its end: a result of which a row might be left is in the way of the next query.
        """
        (found,) = self.execute(sql).fetchall()
        return tuple(found)

    def arrow(self, sql: str) -> Any:
        """Run SQL of our own making; the result as an arrow table."""
        with self._deadline():
            return self._con.sql(sql).to_arrow_table()

    def arrow_over(self, rows: Any, sql: str) -> Any:
        """Run SQL of our own making over an arrow table, ``laionkit_rows``; the result as one."""
        with self._named(rows):
            return self.arrow(sql)

    def batches(self, sql: str, rows: int = 100_000, *, over: Any = None) -> Iterator[Any]:
        """Run SQL of our own making; yield arrow record batches of about `rows` rows.

        `over` is an arrow table that it may name ``laionkit_rows``. No deadline: whoever takes the
        batches sets the pace.
        """
        with self._errors(), self._named(over):
            try:
                yield from self._con.sql(sql).to_arrow_reader(rows)
            except OSError as error:  # what the engine says while it is read from, told by arrow
                raise StageFailed(f"{self.where}: {one_line(error)}") from error

    def check(self, sql: str) -> None:
        """Make sure that a filter's SQL is a condition over these columns, without running it.

        Raises ConfigError where the types do not fit. `sql` must come from ``parse_where``.
        """
        try:
            rows = self._con.execute(f"DESCRIBE SELECT ({sql}) AS x FROM {VIEW}").fetchall()
        except duckdb.Error as error:
            raise ConfigError(f"filter {sql!r}: {one_line(error)}") from error
        kind = rows[0][1]
        if kind not in ("BOOLEAN", '"NULL"'):
            raise ConfigError(f"filter {sql!r} is no condition: it gives {kind}, not true or false")

    def insert(self, name: str, rows: Any, sql: str = "FROM laionkit_rows") -> None:
        """Append an arrow table's rows to a temporary table, made where it is not there.

        `sql` is what is made of them first, as ``laionkit_rows``.
        """
        with self._named(rows):
            self.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} AS {sql} LIMIT 0")
            self.execute(f"INSERT INTO {name} {sql}")

    @contextlib.contextmanager
    def _named(self, rows: Any) -> Iterator[None]:
        """Know an arrow table as ``laionkit_rows``; nothing where it is None."""
        if rows is None:
            yield
            return
        self._con.register("laionkit_rows", rows)
        try:
            yield
        finally:
            self._con.unregister("laionkit_rows")

    @contextlib.contextmanager
    def _deadline(self) -> Iterator[None]:
        timer = threading.Timer(self.timeout_s or 0, self._con.interrupt)
        if self.timeout_s:
            timer.start()
        try:
            with self._errors():
                yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the engine's errors into our one line."""
        try:
            yield
        except duckdb.InterruptException as error:
            raise InputError(
                f"{self.where}: the query took longer than {self.timeout_s} s; simplify it"
            ) from error
        except duckdb.OutOfMemoryException as error:
            raise StageFailed(f"{self.where}: {one_line(error)}") from error
        except duckdb.IOException as error:
            if "no space left" in str(error).lower():  # where it spills to
                raise StageFailed(f"{self.where}: {one_line(error)}") from error
            raise InputError(f"{self.where}: {one_line(error)}") from error
        except duckdb.Error as error:
            raise ConfigError(f"{self.where}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An engine's message in one line of bounded length."""
    text = str(error).partition("\n\n")[0].partition("\nLINE")[0]
    return " ".join(text.split())[:300]


def connect(memory_mb: int = DEFAULT_MEMORY_MB, threads: int | None = None) -> Any:
    """A DuckDB connection of its own that spills to disk above `memory_mb`."""
    spill = Path(tempfile.gettempdir()) / f"laionkit-{uuid.uuid4().hex}"
    con = duckdb.connect(config={"autoinstall_known_extensions": False})
    con.execute(f"SET memory_limit = '{memory_mb}MB'")
    con.execute(f"SET temp_directory = {sql_text(str(spill))}")
    con.execute("SET enable_progress_bar = false")
    # A parquet file's statistics leave NaN out, so that DuckDB folds isnan and nullif(x, 'nan') to
    # "there is none": a safety filter would let NaN pass.
    con.execute("SET disabled_optimizers = 'statistics_propagation'")
    con.execute("SET parquet_metadata_cache = true")
    if threads:
        con.execute(f"SET threads = {threads}")
    return con


def sql_name(name: str) -> str:
    """Spell a column or table for DuckDB."""
    return '"' + name.replace('"', '""') + '"'


def sql_text(text: str) -> str:
    """Spell a string literal for DuckDB."""
    return "'" + text.replace("'", "''") + "'"
