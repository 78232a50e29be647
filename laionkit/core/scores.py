"""Score columns on disk: one provenance a column, stored in the records and in each file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.config import StageConfig
from laionkit.core.embeddings import score_stage
from laionkit.core.files import Folder, Written
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.core.schemas import SCORE_SCHEMA, SCORES

PROVENANCE_KEY = "laionkit"
# What of a model's facts a score depends on: where its weights lay does not.
MODEL_FACTS = ("backbone", "weights_sha256", "preprocess", "provenance")


class ColumnConfig(StageConfig):
    """What one score column is made of; every stage that writes the column begins it with this."""

    head: str
    """The head's name."""
    model: str
    """Short name of the model whose embeddings are scored."""


def begin_column(
    runner: Runner,
    dataset: Folder,
    column: str,
    model: str,
    head_facts: Mapping[str, Any],
    model_facts: Mapping[str, Any],
) -> ColumnConfig:
    """Begin a column, or go on with it. Raises StaleOutput where it was made of something else."""
    config = ColumnConfig(head=str(head_facts["head"]), model=model)
    facts = {name: value for name, value in head_facts.items() if name != "head"}
    facts |= {name: model_facts.get(name) for name in MODEL_FACTS}
    return runner.begin(StageRecords(dataset, score_stage(column)), config, facts=facts)


def score_path(column: str, shard: str) -> str:
    """Where a shard of a column lies."""
    return f"{SCORES}/{column}/{shard}.parquet"


def write_scores(
    dataset: Folder, column: str, shard: str, keys: Sequence[str], values: NDArray[Any]
) -> Written:
    """Write one shard of a column that was begun: numbers, NaN becoming null, or labels."""
    made = StageRecords(dataset, score_stage(column)).made()
    assert made is not None, f"{column} was not begun"
    provenance = {"column": column, **made.config, **made.facts}
    text = json.dumps(provenance, sort_keys=True)
    kind = pa.string() if values.dtype == object else SCORE_SCHEMA.field("value").type
    value = pa.array(values, type=kind, from_pandas=True)  # NaN becomes null
    table = pa.table({"key": pa.array(keys, pa.string()), "value": value})
    return dataset.write_table(
        score_path(column, shard), table.replace_schema_metadata({PROVENANCE_KEY: text})
    )


def read_labels(path: str | None) -> tuple[str, str] | None:
    """A file of labels as (path, text), None where none is named."""
    if path is None:
        return None
    folder, _, name = path.rpartition("/")
    return path, Folder(folder or ".").read_bytes(name).decode("utf-8", errors="replace")
