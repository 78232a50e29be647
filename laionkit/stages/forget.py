"""forget: take samples down, so that no search, filter, subset or later index shows them.

Writes the dataset's list of takedowns and marks the rows of every index; a compaction then drops
their vectors. What lies in shards/, embeddings/ and subsets that were written before stays there.
"""

import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laionkit.core.config import StageConfig
from laionkit.core.embeddings import model_made
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder
from laionkit.core.forgotten import add_forgotten, read_forgotten
from laionkit.core.lists import read_keys
from laionkit.core.progress import Counts
from laionkit.core.runner import Runner, StageReport
from laionkit.core.schemas import SUBSETS
from laionkit.core.table import DatasetTable
from laionkit.ops.predicates import parse_where

STAGE = "forget"


class ForgetConfig(StageConfig):
    """Which samples are taken down: those of a list, or those a filter finds."""

    keys: str | None = None
    """File of keys: parquet with a column key, or text with one key a line."""
    where: str | None = None
    """SQL over the dataset's columns that every sample to take down meets, such as
    url LIKE 'https://example.org/%'."""


def forget(dataset: str, config: ForgetConfig, *, runner: Runner = Runner()) -> StageReport:
    """Take samples down for good: no search, filter or subset that begins after this has them.

    The report counts the samples newly taken down. Raises ConfigError where `config` does not
    say which, or where the Runner does not say yes.
    """
    started = time.monotonic()
    folder = Folder(dataset)
    keys = _find(folder, config)
    there, total = _there(folder, keys)
    if there and not runner.yes:
        raise ConfigError(
            f"{there:,} of {total:,} samples of {dataset} would be taken down for good: add --yes"
        )
    add_forgotten(folder, keys)
    notes = [f"{len(keys) - there:,} of the keys are not in the dataset, or no more"]
    notes = notes if len(keys) > there else []
    if not len(keys):
        notes = ["no sample is meant: nothing was taken down"]
    notes += _forget_in_indexes(folder)
    notes += [
        f"the subset {name} still holds {n:,} of all that were taken down: make it again"
        for name, n in _left(folder)
    ]
    return StageReport(
        stage=STAGE,
        dataset=folder.url,
        counts=Counts.of(there, {}),
        seconds=round(time.monotonic() - started, 3),
        notes=tuple(notes),
    )


def _find(folder: Folder, config: ForgetConfig) -> pa.ChunkedArray:
    """The keys to take down, each once."""
    if (config.keys is None) == (config.where is None):
        raise ConfigError("say which samples: --keys FILE, or --where SQL")
    if config.keys is not None:
        keys = read_keys(config.keys)["key"].drop_null()
        return pa.chunked_array([pc.unique(keys)], pa.string())
    with DatasetTable(folder) as table:
        predicate = parse_where(config.where or "", table.columns)
        table.check(predicate.sql)
        columns = dict.fromkeys(["key", *predicate.columns])
        found = table.arrow(f"SELECT key FROM ({table.select(columns)}) WHERE {predicate.sql}")
    return found["key"].cast(pa.string())


def _there(folder: Folder, keys: pa.ChunkedArray) -> tuple[int, int]:
    """How many of the keys are samples that can be seen, and how many samples there are."""
    with DatasetTable(folder) as table:
        table.insert("named", pa.table({"key": keys}))
        there = f"SELECT count(*) FROM ({table.select(['key'])}) SEMI JOIN named USING (key)"
        return table.row(there)[0], table.rows


def _forget_in_indexes(folder: Folder) -> Iterator[str]:
    """Mark the rows of every index; say what each still holds for other tools."""
    from laionkit.search.build import Shape
    from laionkit.search.opening import indexed_models
    from laionkit.search.writer import IndexWriter

    for model in indexed_models(folder):
        facts = model_made(folder, model).facts
        writer = IndexWriter(folder, model, facts, lambda rows, dim: Shape())
        if gone := writer.forget():
            yield (
                f"index of {model}: {gone:,} rows are never found again; image.index, for other "
                f"tools, holds them until laionkit index {folder} --as {model} --compact"
            )


def _left(folder: Folder) -> Iterator[tuple[str, int]]:
    """Subsets that were written before and hold samples that are taken down, and how many."""
    gone = read_forgotten(folder)
    for name in folder.folders(SUBSETS):
        path = f"{SUBSETS}/{name}/kept.parquet"
        if not folder.exists(path):
            continue
        with folder.open(path) as file:
            try:
                batches = pq.ParquetFile(file).iter_batches(columns=["key"])
                held = sum(pc.sum(pc.is_in(batch["key"], value_set=gone)).as_py() or 0
                           for batch in batches)  # fmt: skip
            except pa.ArrowInvalid as error:
                raise InputError(f"{folder.at(path)} is not readable parquet: {error}") from error
        if held:
            yield name, held
