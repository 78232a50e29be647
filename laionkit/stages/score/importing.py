"""Scores made elsewhere: a file joined with the dataset on key, hash or sha256.

The file's values are in memory while it is imported (about 100 bytes a row).
"""

import functools
import hashlib
import logging
import time
from collections.abc import Iterator
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from laionkit.core.embeddings import choose_model, list_embeddings, score_stage
from laionkit.core.errors import InputError, did_you_mean
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import StageRecords
from laionkit.core.runner import Outcome, Runner, Site, StageReport, Task
from laionkit.core.schemas import RESERVED_COLUMNS, Reason, Status, column_for
from laionkit.core.scores import ColumnConfig, begin_scores, write_scores
from laionkit.core.shards import list_shards

On = Literal["key", "hash", "sha256"]


def import_scores(
    dataset: Folder, path: str, on: On, value: str | None, model: str | None, runner: Runner
) -> tuple[str, StageReport]:
    """Make a score column of a file's column; returns its name and the report.

    Rows are those of the image shards, or of the embeddings where there are no shards.
    """
    source, _, name = path.rpartition("/")
    data = Folder(source or ".").read_bytes(name)
    value, scores = read_scores(path, data, on, value)
    column = column_for(value)
    if column in RESERVED_COLUMNS:
        raise InputError(f"{path}: a score cannot be called {column}, which is another column")
    records = StageRecords(dataset, score_stage(column))
    facts = {"file_sha256": hashlib.sha256(data).hexdigest(), "on": on, "provenance": "declared"}
    config = ColumnConfig(head=f"import:{value}", model="")
    config = begin_scores(runner, dataset, column, config, facts)
    tables = _tables(dataset, model)
    tasks = [Task(shard, {"rows": content}, rows) for shard, (_, content, rows) in tables.items()]
    paths = {shard: table for shard, (table, _, _) in tables.items()}
    opener = functools.partial(ImportWorker, dataset.url, column, on, scores, paths)
    report = runner.run(records, config, tasks, opener)
    if report.counts.seen and not report.counts.ok:
        said = f"no {on} of {path}, such as {str(scores.index[0])!r}, is one of {dataset}"
        runner.note(records.stage, f"{said}: {column} holds nothing", logging.WARNING)
    return column, report


def read_scores(
    path: str, data: bytes, on: On, value: str | None
) -> tuple[str, "pd.Series[float]"]:
    """The value column's name, and its values by what is joined on. Raises InputError."""
    table = _parse(path, data, on)
    if on not in table.column_names:
        raise InputError(
            f"{path} has no column {on!r} to join on{did_you_mean(on, table.column_names)}: it "
            f"has {', '.join(table.column_names)}; say --on key, hash or sha256"
        )
    numeric = [
        field.name
        for field in table.schema
        if field.name != on
        and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
    ]
    if value is None and len(numeric) == 1:
        value = numeric[0]
    if value is None or value not in numeric:
        raise InputError(
            f"{path}: name the column of scores with --value: {', '.join(numeric) or 'none'} "
            f"{'are' if len(numeric) != 1 else 'is'} numeric"
        )
    scores = pd.Series(
        table[value].to_pandas().to_numpy(dtype="float32", na_value=float("nan")),
        index=pd.Index(table[on].to_pandas()),
    )
    scores = scores[scores.index.notna()]
    if not len(scores):
        raise InputError(f"{path} has no row with a {on}")
    if not scores.index.is_unique:
        twice = scores.index[scores.index.duplicated()][0]
        raise InputError(f"{path} scores {on} {twice!r} twice: which one is meant?")
    return value, scores


def _parse(path: str, data: bytes, on: On) -> pa.Table:
    try:
        if path.endswith(".parquet"):
            return pq.read_table(pa.BufferReader(data))
        kind = pa.int64() if on == "hash" else pa.string()
        options = pyarrow.csv.ConvertOptions(column_types={on: kind})
        return pyarrow.csv.read_csv(pa.BufferReader(data), convert_options=options)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is no readable csv or parquet: {error}") from error


def _tables(dataset: Folder, model: str | None) -> dict[str, tuple[str, str, int]]:
    """Shard → (table with its rows, content, rows)."""
    shards = list_shards(dataset)
    if shards:
        return {ref.name: (ref.table, ref.content, ref.samples) for ref in shards}
    refs = list_embeddings(dataset, choose_model(dataset, model))
    return {ref.name: (ref.metadata, ref.content, ref.rows) for ref in refs}


class ImportWorker:
    """Joins shards of rows with the file's values."""

    def __init__(
        self,
        url: str,
        column: str,
        on: On,
        scores: "pd.Series[float]",
        tables: dict[str, str],
        site: Site,
    ) -> None:
        """Write `column` of the dataset at `url`."""
        self.dataset, self.column, self.on = Folder(url), column, on
        self.scores, self.tables = scores, tables

    def __enter__(self) -> "ImportWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def process(self, shards: Iterator[str]) -> Iterator[Outcome]:
        """Join one shard after the other."""
        for shard in shards:
            started = time.monotonic()
            frame = self._rows(self.tables[shard])
            values = self.scores.reindex(frame[self.on])
            found = values.notna().to_numpy()
            keys = frame["key"].to_numpy()[found].tolist()
            written = write_scores(self.dataset, self.column, shard, keys, values.to_numpy()[found])
            counts = Counts.of(len(keys), {Reason.NOT_SCORED: int((~found).sum())})
            yield Outcome(shard, counts, {"scores": written}, time.monotonic() - started)

    def _rows(self, path: str) -> "pd.DataFrame":
        """Key and what is joined on, of the samples that have a picture."""
        table = self.dataset.read_table(path)
        if "key" not in table.column_names and "image_path" in table.column_names:
            table = table.append_column("key", table["image_path"])
        if self.on not in table.column_names:
            raise InputError(f"{path} has no column {self.on} to join scores on")
        wanted = [n for n in dict.fromkeys(("key", self.on, "status")) if n in table.column_names]
        frame: pd.DataFrame = table.select(wanted).to_pandas()
        if "status" in frame:
            frame = frame[frame["status"] == Status.SUCCESS]
        return frame
