"""One relation over a dataset: metadata, what fetch found and every score, one row per key.

Nothing is copied: DuckDB reads the parquet files that the records name, and joins only what a
query asks for. A key's latest attempt counts: where a later shard tries a key again (links that
healed), the earlier row is hidden.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow.parquet as pq

from laionkit.core.config import fingerprint
from laionkit.core.embeddings import (
    embedded_models,
    list_embeddings,
    model_made,
    score_columns,
    score_stage,
)
from laionkit.core.engine import DEFAULT_MEMORY_MB, VIEW, Engine, one_line, sql_name, sql_text
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.forgotten import FORGOTTEN, forgotten_content
from laionkit.core.records import StageMade, StageRecords
from laionkit.core.schemas import (
    EXTRA_FETCHED_COLUMNS,
    FETCHED_COLUMNS,
    METADATA,
    PUBLISHED_COLUMNS,
)
from laionkit.core.shards import list_shards

PUBLISHED, CARRIED, FETCHED = "published", "carried through", "fetched"


@dataclass(frozen=True)
class ColumnInfo:
    """A column of a dataset: type, where it comes from, how many nulls, its range."""

    name: str
    type: str
    origin: str
    nulls: int
    min: Any
    max: Any


@dataclass
class _Source:
    """Files that hold one row per key: their view and the columns it shows, name → type."""

    view: str
    rows: int
    columns: dict[str, str] = field(default_factory=dict)


class DatasetTable(Engine):
    """A DuckDB connection over one dataset.

    `columns` maps each column to its DuckDB type, `origins` to where it comes from, `inputs` each
    source to the content of its files. Samples that were taken down are not there. `memory_mb`
    bounds the engine, which spills to disk above it; `timeout_s` bounds each query. With `guard`,
    the engine of a local dataset can open no file but the dataset's from then on.
    """

    def __init__(
        self,
        dataset: str | Folder,
        *,
        memory_mb: int = DEFAULT_MEMORY_MB,
        threads: int | None = None,
        timeout_s: float | None = None,
        guard: bool = True,
    ) -> None:
        """Open a dataset. Raises InputError where it holds nothing that has rows."""
        self.folder = Folder(dataset) if isinstance(dataset, str) else dataset
        super().__init__(str(self.folder), memory_mb, threads, timeout_s)
        self._files: set[str] = set()
        if not self.folder.is_local:
            self._con.register_filesystem(self.folder.fs)
        self._sources: list[_Source] = []
        self._tried_again = False
        self.columns: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self._places: dict[str, tuple[_Source, str]] = {}
        self.inputs: dict[str, str] = {}
        self._forgotten = self._open_forgotten()
        self._add_rows()
        for column, made in score_columns(self.folder).items():
            self._add_score(column, made)
        self._con.execute(f"CREATE VIEW {VIEW} AS {self.select()}")
        if guard and self.folder.is_local:
            self._guard()

    def __enter__(self) -> "DatasetTable":
        """Use as a context: the connection is closed at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    @property
    def rows(self) -> int:
        """How many rows there are, one per key."""
        found: int = self.execute(f"SELECT count(*) FROM ({self.select(['key'])})").fetchone()[0]
        return found

    def select(self, columns: Iterable[str] | None = None) -> str:
        """SQL of the relation with `columns` (default: all), joining only what they need."""
        wanted = list(self.columns) if columns is None else list(columns)
        aliases: dict[str, str] = {self._sources[0].view: "t0"}
        parts = []
        for name in wanted:
            source, inner = self._places[name]
            alias = aliases.setdefault(source.view, f"t{len(aliases)}")
            parts.append(f"{alias}.{sql_name(inner)} AS {sql_name(name)}")
        joins = "".join(
            f" LEFT JOIN {view} {alias} ON {alias}.key = t0.key"
            for view, alias in aliases.items()
            if alias != "t0"
        )
        if self._forgotten:
            joins += f" ANTI JOIN {self._forgotten} f ON f.key = t0.key"
        return f"SELECT {', '.join(parts)} FROM {self._sources[0].view} t0{joins}"

    def relation(self) -> Any:
        """The whole relation, lazily: a DuckDBPyRelation."""
        return self._con.sql(f"SELECT * FROM {VIEW}")

    def infos(self) -> list[ColumnInfo]:
        """Type, origin, nulls and range of each column, in one scan."""
        names = list(self.columns)
        ranged = [name for name in names if not _is_nested(self.columns[name])]
        parts = [f"count(*) - count({sql_name(name)})" for name in names]
        for name in ranged:
            cell = (
                sql_name(name) if self.columns[name] != "VARCHAR" else f"left({sql_name(name)}, 40)"
            )
            parts += [f"min({cell})", f"max({cell})"]
        found = self.execute(f"SELECT {', '.join(parts)} FROM {VIEW}").fetchone()
        ends = found[len(names) :]
        ranges = {name: (ends[2 * i], ends[2 * i + 1]) for i, name in enumerate(ranged)}
        return [
            ColumnInfo(name, kind, self.origins[name], nulls, *ranges.get(name, (None, None)))
            for (name, kind), nulls in zip(self.columns.items(), found, strict=False)
        ]

    def _guard(self) -> None:
        """From now on, open no file but those of the views."""
        paths = ", ".join(sql_text(path) for path in sorted(self._files))
        self._con.execute(f"SET allowed_paths = [{paths}]")
        self._con.execute("SET enable_external_access = false")
        self._con.execute("SET lock_configuration = true")

    def _open_forgotten(self) -> str:
        """The view of keys that were taken down; empty where none ever was."""
        content = forgotten_content(self.folder)
        if not content:
            return ""
        self.inputs["forgotten"] = content
        path = self._path(FORGOTTEN)
        self._files.add(path)
        sql = f"SELECT key FROM read_parquet({sql_text(path)})"
        self._con.execute(f"CREATE VIEW laionkit_forgotten AS {sql}")
        return "laionkit_forgotten"

    def _add_rows(self) -> None:
        """The sources that say which keys there are: metadata, shards, or embeddings."""
        parts = self._metadata_files()
        refs = list_shards(self.folder)
        shards = [(ref.name, ref.table) for ref in refs]
        if refs:
            self.inputs["shards"] = fingerprint({ref.name: ref.content for ref in refs})
        metadata = self._source("metadata", parts) if parts else None
        fetched = self._source("fetched", shards) if shards else None
        if metadata and fetched and not self._complete(metadata, fetched):
            self._show(metadata)
            self._show(fetched, skip=self.columns)
        elif fetched or metadata:
            self._show(fetched or metadata)  # type: ignore[arg-type]
        else:
            self._show(self._embedding_rows())

    def _metadata_files(self) -> list[tuple[str, str]]:
        """(part, path) of each finished part of the metadata."""
        records = list(StageRecords(self.folder, METADATA).all())
        if records:
            self.inputs[METADATA] = fingerprint({r.shard: r.content() for r in records})
        return [
            (record.shard, entry.path)
            for record in records
            for entry in record.files.values()
            if entry.path.endswith(f"{record.shard}.parquet")
        ]

    def _complete(self, metadata: _Source, fetched: _Source) -> bool:
        """Whether every link was tried and every column carried: then shards alone say all."""
        there = {name.lower() for name in fetched.columns}
        return metadata.rows == fetched.rows and all(c.lower() in there for c in metadata.columns)

    def _embedding_rows(self) -> _Source:
        """The rows of the model that embedded the most."""
        found = {
            model: list_embeddings(self.folder, model) for model in embedded_models(self.folder)
        }
        model = max(found, key=lambda name: sum(ref.rows for ref in found[name]), default=None)
        if model is None or not found[model]:
            raise InputError(
                f"{self.folder} holds no dataset: no metadata, shards or embeddings are recorded "
                "there"
            )
        contents = {ref.name: ref.content for ref in found[model]}
        self.inputs[f"embeddings/{model}"] = fingerprint(contents)
        key = str(model_made(self.folder, model).facts.get("key_column", "image_path"))
        return self._source("embedded", [(r.name, r.metadata) for r in found[model]], key=key)

    def _add_score(self, column: str, made: StageMade) -> None:
        records = list(StageRecords(self.folder, score_stage(column)).all())
        if not records:
            return
        contents = {record.shard: record.content() for record in records}
        self.inputs[f"scores/{column}"] = fingerprint(contents)
        files = [(record.shard, record.files["scores"].path) for record in records]
        if not self._tried_again:
            self._show_score(column, made, self._score_source(files))
            return
        source = self._source(f"score_{len(self._sources)}", files)
        self._show_score(column, made, source)

    def _score_source(self, files: Sequence[tuple[str, str]]) -> _Source:
        """A score column's view where no key was tried twice.

        Its schema is known, so that only its first file is opened before a query.
        """
        paths = [self._path(path) for _, path in files]
        self._files.update(paths)
        view = f"laionkit_score_{len(self._sources)}"
        listed = ", ".join(sql_text(path) for path in paths)
        self._con.execute(f"CREATE VIEW {view} AS SELECT key, value FROM read_parquet([{listed}])")
        return _Source(view, 0, {"key": "VARCHAR", "value": "FLOAT"})

    def _show_score(self, column: str, made: StageMade, source: _Source) -> None:
        self._sources.append(source)
        name = column if column.lower() not in {c.lower() for c in self.columns} else f"{column}_2"
        self.columns[name] = source.columns["value"]
        self.origins[name] = score_origin(made)
        self._places[name] = (source, "value")

    def _show(self, source: _Source, skip: Iterable[str] = ()) -> None:
        taken = {name.lower() for name in skip}
        self._sources.append(source)
        for name, kind in source.columns.items():
            if name.lower() not in taken:
                self.columns[name] = kind
                self.origins[name] = _origin(name)
                self._places[name] = (source, name)

    def _source(self, name: str, files: Sequence[tuple[str, str]], key: str = "key") -> _Source:
        """Make the view of `files`, (shard, path) in order: each key's row of its latest shard."""
        paths = [self._path(path) for _, path in files]
        self._files.update(paths)
        listed = ", ".join(sql_text(path) for path in paths)
        reader = f"read_parquet([{listed}], union_by_name = true)"
        try:
            later, rows = self._later_attempts(paths, key)
            self._tried_again = self._tried_again or bool(later)
            shown = self._shown(reader, self.folder, files[0][1], key)
        except duckdb.Error as error:
            raise InputError(f"{self.folder}: {one_line(error)}") from error
        view = f"laionkit_{name}"
        picks = [f"{_number(inner, kind)} AS {sql_name(o)}" for o, (inner, kind) in shown.items()]
        with_shard = name in ("fetched", "embedded") and "shard" not in shown
        if with_shard:
            names = ", ".join(sql_text(shard) for shard, _ in files)
            picks.append(f"[{names}][r.file_index::BIGINT + 1] AS shard")
        sql = f"SELECT {', '.join(picks)} FROM {reader} AS r"
        if later:
            again = ", ".join(sql_text(paths[i]) for i in later)
            sql += (
                f" ANTI JOIN (SELECT {sql_name(key)} AS k, {later}[file_index::BIGINT + 1] AS i"
                f" FROM read_parquet([{again}], union_by_name = true)) AS l"
                f" ON r.{sql_name(key)} = l.k AND r.file_index::BIGINT < l.i"
            )
        self._con.execute(f"CREATE VIEW {view} AS {sql}")
        columns = {outer: kind for outer, (_, kind) in shown.items()}
        return _Source(view, rows, columns | ({"shard": "VARCHAR"} if with_shard else {}))

    def _path(self, path: str) -> str:
        """How DuckDB names a file of the dataset."""
        full = self.folder.at(path)
        if self.folder.is_local:
            return full
        protocol = self.folder.url.partition("://")[0]
        return f"{protocol}://{full}"

    def _later_attempts(self, paths: Sequence[str], key: str) -> tuple[list[int], int]:
        """Indices of the files whose keys may repeat an earlier file's, and the others' rows.

        Decided by the least and greatest key in each footer, so that no key is read.
        """
        listed = ", ".join(sql_text(path) for path in paths)
        found = self._con.execute(
            "SELECT file_name, min(stats_min_value), max(stats_max_value), sum(num_values)"
            f" FROM parquet_metadata([{listed}]) WHERE path_in_schema = ? GROUP BY 1",
            [key],
        ).fetchall()
        spans = {file: (low, high, int(rows)) for file, low, high, rows in found}
        later, total, top = [], 0, ""
        for i, path in enumerate(paths):
            low, high, rows = spans.get(path, ("", "", 0))
            if rows and (low is None or low <= top):
                later.append(i)
            else:
                total += rows
            top = max(top, high or "")
        return later, total

    def _shown(
        self, reader: str, folder: Folder, first: str, key: str
    ) -> dict[str, tuple[str, str]]:
        """The columns of the files as name → (DuckDB's name, type).

        DuckDB renames a column whose name differs from another's in case alone (``WIDTH`` beside
        ``width``): that which is ours keeps its name, the other becomes ``src_WIDTH``.
        """
        described = self._con.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
        kinds = [(name, kind) for name, kind, *_ in described]
        with folder.open(first) as file:
            real = pq.read_schema(file).names
        names = [*real, *(name for name, _ in kinds[len(real) :])]
        shown: dict[str, tuple[str, str]] = {}
        doubled = {n.lower() for n in names if sum(n.lower() == m.lower() for m in names) > 1}
        for name, (inner, kind) in zip(names, kinds, strict=True):
            outer = "key" if name == key else name
            if name != key and (name == "key" or (name.lower() in doubled and not name.islower())):
                outer = f"src_{name}"
            shown[outer] = (inner, kind)
        if "key" not in shown:
            raise InputError(f"{folder.at(first)} has no column {key!r}; it has {', '.join(real)}")
        return {"key": shown.pop("key"), **shown}


def table(dataset: str) -> Any:
    """A dataset as one DuckDB relation, lazily: a row per key, every column and score.

    The connection is the relation's own, and may read other files too:
    ``table("d").filter("punsafe < 0.1").df()``.
    """
    return DatasetTable(dataset, guard=False).relation()


def columns(dataset: str) -> list[ColumnInfo]:
    """Type, origin, nulls and range of each column of a dataset."""
    with DatasetTable(dataset) as opened:
        return opened.infos()


def score_origin(made: StageMade) -> str:
    """Say what computed a score column: ``computed by aesthetic-v2 on ViT-L-14/openai``."""
    facts = {**made.config, **made.facts}
    word = "declared" if facts.get("provenance") == "declared" else "computed"
    what = [str(facts[name]) for name in ("head", "backbone", "model") if facts.get(name)]
    return f"{word}: {' on '.join(what[:2])}" if what else word


def _origin(name: str) -> str:
    if name in FETCHED_COLUMNS or name in EXTRA_FETCHED_COLUMNS or name == "shard":
        return FETCHED
    return PUBLISHED if name in PUBLISHED_COLUMNS else CARRIED


def _number(inner: str, kind: str) -> str:
    """A column as it is, NaN as null: DuckDB holds NaN for greater than every threshold."""
    name = sql_name(inner)
    return f"nullif({name}, 'nan'::{kind})" if kind in ("FLOAT", "DOUBLE") else name


def _is_nested(kind: str) -> bool:
    return kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION", '"NULL"', "JSON"))
