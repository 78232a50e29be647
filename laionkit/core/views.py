"""Views over a dataset's parquet files: the sources that its one relation joins.

A key's latest attempt counts: where a later shard tries a key again, the earlier row is hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow.parquet as pq

from laionkit.core.engine import one_line, sql_name, sql_text
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.shard_scan import look_over


@dataclass
class Source:
    """Files that hold one row per key: their view and the columns it shows, name → type.

    `files` are (shard, path), `named` maps each column to the files' own name for it, `key`
    among them; `whole` says that no row of the files is hidden by a later one.
    """

    view: str
    rows: int
    columns: dict[str, str] = field(default_factory=dict)
    files: Sequence[tuple[str, str]] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True


class Views:
    """Makes views in an engine's connection.

    `files` are those that views read, as the engine names them; `tried_again` says that some key
    was tried more than once.
    """

    def __init__(self, con: Any, folder: Folder) -> None:
        """Make views of files of `folder` in `con`."""
        self._con, self._folder = con, folder
        self.files: set[str] = set()
        self.tried_again = False

    def keys(self, view: str, paths: Sequence[str]) -> None:
        """The view of the column ``key`` of files."""
        self._con.execute(f"CREATE VIEW {view} AS SELECT key FROM {self._reader(paths)}")

    def scores(self, view: str, files: Sequence[tuple[str, str]]) -> Source:
        """The view of a score column whose keys were tried once each.

        Its files are of one schema, so that only the first is opened before a query.
        """
        paths = [path for _, path in files]
        first = f"DESCRIBE SELECT key, value FROM {self._reader(paths[:1])}"
        kinds = {name: kind for name, kind, *_ in self._con.execute(first).fetchall()}
        value = number("value", kinds["value"])
        sql = f"SELECT key, {value} AS value FROM {self._reader(paths)}"
        self._con.execute(f"CREATE VIEW {view} AS {sql}")
        return Source(view, 0, kinds, files, {name: name for name in kinds})

    def rows(
        self, view: str, files: Sequence[tuple[str, str]], *, key: str = "key", shard: bool = False
    ) -> Source:
        """The view of `files`, (shard, path) in order: each key's row of its latest shard.

        `key` is the files' own name for it. With `shard`, a column names each row's shard.
        """
        paths = [path for _, path in files]
        try:
            later, rows, alike = look_over(self._folder, paths, key)
            reader = self._reader(paths, union=not alike)
            shown, named = self._shown(reader, paths[0], key)
        except duckdb.Error as error:
            raise InputError(f"{self._folder}: {one_line(error)}") from error
        self.tried_again = self.tried_again or bool(later)
        picks = [f"{number(inner, kind)} AS {sql_name(o)}" for o, (inner, kind) in shown.items()]
        columns = {outer: kind for outer, (_, kind) in shown.items()}
        if shard and "shard" not in shown:
            names = ", ".join(sql_text(name) for name, _ in files)
            picks.append(f"[{names}][r.file_index::BIGINT + 1] AS shard")
            columns["shard"] = "VARCHAR"
        sql = f"SELECT {', '.join(picks)} FROM {reader} AS r"
        if later:
            again = self._reader([paths[i] for i in later], union=True)
            sql += (
                f" ANTI JOIN (SELECT {sql_name(key)} AS k, {later}[file_index::BIGINT + 1] AS i"
                f" FROM {again}) AS l ON r.{sql_name(key)} = l.k AND r.file_index::BIGINT < l.i"
            )
        self._con.execute(f"CREATE VIEW {view} AS {sql}")
        return Source(view, rows, columns, files, named, whole=not later)

    def _reader(self, paths: Sequence[str], *, union: bool = False) -> str:
        """SQL that reads files as one table; with `union`, files of several schemas."""
        named = [self._path(path) for path in paths]
        self.files.update(named)
        listed = ", ".join(map(sql_text, named))
        return f"read_parquet([{listed}]{', union_by_name = true' * union})"

    def _path(self, path: str) -> str:
        """How DuckDB names a file of the dataset."""
        full = self._folder.at(path)
        if self._folder.is_local:
            return full
        return f"{self._folder.url.partition('://')[0]}://{full}"

    def _shown(
        self, reader: str, first: str, key: str
    ) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
        """The columns of the files as name → (DuckDB's name, type), and → the files' own name.

        DuckDB renames a column whose name differs from another's in case alone (``WIDTH`` beside
        ``width``): that which is ours keeps its name, the other becomes ``src_WIDTH``.
        """
        described = self._con.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
        kinds = [(name, kind) for name, kind, *_ in described]
        with self._folder.open(first) as file:
            real = pq.read_schema(file).names
        names = [*real, *(name for name, _ in kinds[len(real) :])]
        shown: dict[str, tuple[str, str]] = {}
        named: dict[str, str] = {}
        doubled = {n.lower() for n in names if sum(n.lower() == m.lower() for m in names) > 1}
        for name, (inner, kind) in zip(names, kinds, strict=True):
            outer = "key" if name == key else name
            if name != key and (name == "key" or (name.lower() in doubled and not name.islower())):
                outer = f"src_{name}"
            shown[outer], named[outer] = (inner, kind), name
        if "key" not in shown:
            path = self._folder.at(first)
            raise InputError(f"{path} has no column {key!r}; it has {', '.join(real)}")
        return {"key": shown.pop("key"), **shown}, named


def number(inner: str, kind: str) -> str:
    """A column as it is, NaN as null: DuckDB holds NaN for greater than every threshold."""
    name = sql_name(inner)
    return f"nullif({name}, 'nan'::{kind})" if kind in ("FLOAT", "DOUBLE") else name
