"""One relation over a dataset: metadata, what fetch found and every score, one row per key.

Nothing is copied: DuckDB reads the parquet files that the records name, and joins only what a
query asks for. A key's latest attempt counts: where a later shard tries a key again (links that
healed), the earlier row is hidden.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import duckdb

from laionkit.core.columns import ColumnInfo, column_origin, is_nested, score_origin
from laionkit.core.config import fingerprint
from laionkit.core.embeddings import (
    embedded_models,
    list_embeddings,
    model_made,
    score_columns,
    score_stage,
)
from laionkit.core.engine import DEFAULT_MEMORY_MB, VIEW, Engine, sql_name, sql_text
from laionkit.core.errors import InputError, LaionkitError
from laionkit.core.files import Folder
from laionkit.core.forgotten import forgotten_content, forgotten_files
from laionkit.core.records import StageMade, StageRecords
from laionkit.core.schemas import METADATA
from laionkit.core.shard_scan import NEEDS_JOIN, ShardScan, column_ends
from laionkit.core.shards import list_shards
from laionkit.core.views import Source, Views, number

T = TypeVar("T")

FETCHED_VIEW, EMBEDDED_VIEW = "laionkit_fetched", "laionkit_embedded"


class DatasetTable(Engine):
    """A DuckDB connection over one dataset.

    `columns` maps each column to its DuckDB type, `origins` to where it comes from, `inputs` each
    source to the content of its files; `tar_bytes` is what the tars weigh that hold `tar_samples`
    pictures. Samples that were taken down or superseded are not there. `memory_mb` bounds the
    engine, which spills to disk above it; `timeout_s` bounds each query. With `guard`, the engine
    of a local dataset can open no file but the dataset's from then on.
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
        self._views = Views(self._con, self.folder)
        if not self.folder.is_local:
            self._con.register_filesystem(self.folder.fs)
        self._sources: list[Source] = []
        self.columns: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self._places: dict[str, tuple[Source, str]] = {}
        self.inputs: dict[str, str] = {}
        self._forgotten = self._open_forgotten()
        self.tar_bytes = self.tar_samples = 0
        self._add_rows()
        for column, made in score_columns(self.folder).items():
            self._add_score(column, made)
        self._con.execute(f"CREATE VIEW {VIEW} AS {self.select()}")
        if guard and self.folder.is_local:
            self._guard()

    @property
    def tried_again(self) -> bool:
        """Whether some key was tried more than once."""
        return self._views.tried_again

    @property
    def rows(self) -> int:
        """How many rows there are, one per key."""
        found: int = self.row(f"SELECT count(*) FROM ({self.select(['key'])})")[0]
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

    def one_pass(self, columns: Sequence[str], run: Callable[[str], T]) -> T:
        """What `run` makes of SQL for `columns`, which it may read once, in any order of rows.

        Where scores lie in their shards' order this is several times as fast as `select`. `run`
        is called again where they turn out not to.
        """
        scan = self.shard_scan(columns)
        if scan is None or not scan.scores:
            return run(self.select(columns))
        self._con.register("laionkit_scan", scan.reader())
        picks = [f"{number(n, self.columns[n])} AS {sql_name(n)}" for n in columns]
        try:
            return run(f"SELECT {', '.join(picks)} FROM laionkit_scan")
        except (LaionkitError, duckdb.Error) as error:
            if not isinstance(scan.failure, NEEDS_JOIN):
                raise scan.failure or error from error
            return run(self.select(columns))
        finally:
            self._con.unregister("laionkit_scan")

    def shard_scan(self, columns: Sequence[str], *, forgotten: bool = False) -> ShardScan | None:
        """A pass over `columns` without a join; None where one is needed.

        NaN comes out as it is, and with `forgotten` what was taken down. One of NEEDS_JOIN may
        stop it on the way.
        """
        rows = self._sources[0]
        scores = {n: s for n in columns if (s := self._places[n][0]) is not rows}
        shards = {shard for shard, _ in rows.files}
        if self._forgotten and not forgotten:
            return None
        if not rows.whole or rows.view not in (FETCHED_VIEW, EMBEDDED_VIEW):
            return None
        if not all(s.whole and shards.issuperset(dict(s.files)) for s in scores.values()):
            return None
        return ShardScan(
            self.folder,
            rows.files,
            key=rows.named["key"],
            columns={n: rows.named[n] for n in columns if n in rows.named and n not in scores},
            scores={name: dict(source.files) for name, source in scores.items()},
            schema=self.arrow(f"{self._one_row(columns)} LIMIT 0").schema,
        )

    def _one_row(self, columns: Iterable[str]) -> str:
        """SQL of one row of nulls, typed as `columns` are: what binds without opening a file."""
        cells = [f"NULL::{self.columns[name]} AS {sql_name(name)}" for name in columns]
        return f"SELECT {', '.join(cells)}"

    def ends(self, columns: Iterable[str]) -> dict[str, tuple[float, float]]:
        """Least and greatest value of number columns, from the files' footers where they tell."""
        found: dict[str, tuple[float, float]] = {}
        told: dict[str, dict[str, tuple[Any, ...] | None]] = {}
        asked = {name: self._places[name] for name in columns}
        for name, (source, outer) in asked.items():
            if source.view not in told:
                paths = [path for _, path in source.files]
                wanted = [s.named[o] for s, o in asked.values() if s is source]
                told[source.view] = column_ends(self.folder, paths, wanted) if source.whole else {}
            ends = told[source.view].get(source.named[outer])
            if ends is None:
                text = sql_name(name)
                sql = f"SELECT min({text}), max({text}) FROM ({self.select([name])})"
                ends = self.row(sql)
            if ends and ends[0] is not None:
                found[name] = float(ends[0]), float(ends[1])
        return found

    def relation(self) -> Any:
        """The whole relation, lazily: a DuckDBPyRelation."""
        return self._con.sql(f"SELECT * FROM {VIEW}")

    def infos(self) -> list[ColumnInfo]:
        """Type, origin, nulls and range of each column, in one scan."""
        names = list(self.columns)
        ranged = [name for name in names if not is_nested(self.columns[name])]
        parts = [f"count(*) - count({sql_name(name)})" for name in names]
        for name in ranged:
            cell = (
                sql_name(name) if self.columns[name] != "VARCHAR" else f"left({sql_name(name)}, 40)"
            )
            parts += [f"min({cell})", f"max({cell})"]
        found = self.row(f"SELECT {', '.join(parts)} FROM {VIEW}")
        ends = found[len(names) :]
        ranges = {name: (ends[2 * i], ends[2 * i + 1]) for i, name in enumerate(ranged)}
        return [
            ColumnInfo(name, kind, self.origins[name], nulls, *ranges.get(name, (None, None)))
            for (name, kind), nulls in zip(self.columns.items(), found, strict=False)
        ]

    def _guard(self) -> None:
        """From now on, open no file but those of the views."""
        paths = ", ".join(sql_text(path) for path in sorted(self._views.files))
        self._con.execute(f"SET allowed_paths = [{paths}]")
        self._con.execute("SET enable_external_access = false")
        self._con.execute("SET lock_configuration = true")

    def _open_forgotten(self) -> str:
        """The view of keys that were taken down or superseded; empty where none ever was."""
        content = forgotten_content(self.folder)
        if not content:
            return ""
        self.inputs["forgotten"] = content
        self._views.keys("laionkit_forgotten", forgotten_files(self.folder))
        return "laionkit_forgotten"

    def _add_rows(self) -> None:
        """The sources that say which keys there are: metadata, shards, or embeddings."""
        parts = self._metadata_files()
        refs = list_shards(self.folder)
        shards = [(ref.name, ref.table) for ref in refs]
        if refs:
            self.inputs["shards"] = fingerprint({ref.name: ref.content for ref in refs})
            self.tar_bytes = sum(ref.tar_bytes for ref in refs)
            self.tar_samples = sum(ref.samples for ref in refs)
        metadata = self._views.rows("laionkit_metadata", parts) if parts else None
        fetched = self._views.rows(FETCHED_VIEW, shards, shard=True) if shards else None
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

    def _complete(self, metadata: Source, fetched: Source) -> bool:
        """Whether every link was tried and every column carried: then shards alone say all."""
        there = {name.lower() for name in fetched.columns}
        return metadata.rows == fetched.rows and all(c.lower() in there for c in metadata.columns)

    def _embedding_rows(self) -> Source:
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
        files = [(ref.name, ref.metadata) for ref in found[model]]
        return self._views.rows(EMBEDDED_VIEW, files, key=key, shard=True)

    def _add_score(self, column: str, made: StageMade) -> None:
        records = list(StageRecords(self.folder, score_stage(column)).all())
        if not records:
            return
        contents = {record.shard: record.content() for record in records}
        self.inputs[f"scores/{column}"] = fingerprint(contents)
        files = [(record.shard, record.files["scores"].path) for record in records]
        view = f"laionkit_score_{len(self._sources)}"
        views = self._views
        source = views.rows(view, files) if views.tried_again else views.scores(view, files)
        self._show_score(column, made, source)

    def _show_score(self, column: str, made: StageMade, source: Source) -> None:
        self._sources.append(source)
        name = column if column.lower() not in {c.lower() for c in self.columns} else f"{column}_2"
        self.columns[name] = source.columns["value"]
        self.origins[name] = score_origin(made)
        self._places[name] = (source, "value")

    def _show(self, source: Source, skip: Iterable[str] = ()) -> None:
        taken = {name.lower() for name in skip}
        self._sources.append(source)
        for name, kind in source.columns.items():
            if name.lower() not in taken:
                self.columns[name] = kind
                self.origins[name] = column_origin(name)
                self._places[name] = (source, name)


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
