"""Score columns on disk: one provenance a column, stored in the records and in each file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.config import StageConfig
from laionkit.core.embeddings import score_stage
from laionkit.core.errors import StaleOutput
from laionkit.core.files import Folder, Written
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.core.schemas import SCORE_SCHEMA, SCORES, column_for

CLIP_SIMILARITY = "clip_similarity"
PROVENANCE_KEY = "laionkit"
# What of a model's facts a score depends on: where its weights lay does not.
MODEL_FACTS = ("backbone", "weights_sha256", "preprocess", "provenance")


class ColumnConfig(StageConfig):
    """What one score column is made of; every stage that writes the column begins it with this."""

    head: str
    """The head's name."""
    model: str
    """Short name of the model whose embeddings are scored."""


def similarity_column(dataset: Folder, model: str) -> str:
    """The column of a model's cosines of picture and caption.

    It is ``clip_similarity`` for the dataset's first model; for another one, whose cosines are
    others, its name stands behind that.
    """
    made = StageRecords(dataset, score_stage(CLIP_SIMILARITY)).made()
    if made is None or made.config["model"] == model:
        return CLIP_SIMILARITY
    return column_for(f"{CLIP_SIMILARITY}_{model}")


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
    return begin_scores(runner, dataset, column, config, facts)


def begin_scores(
    runner: Runner, dataset: Folder, column: str, config: ColumnConfig, facts: Mapping[str, Any]
) -> ColumnConfig:
    """Begin a column made of `config` and `facts`, or go on with it.

    Raises StaleOutput where it was made of something else: no flag brings a head's old file back.
    """
    records = StageRecords(dataset, score_stage(column))
    try:
        return runner.begin(records, config, facts=facts)
    except StaleOutput as error:
        made = records.made()
        assert made is not None
        was, now = {**made.config, **made.facts}, {**config.what(), **facts}
        names = [n for n in dict.fromkeys([*was, *now]) if was.get(n) != now.get(n)]
        raise StaleOutput(
            f"column {column} of {dataset} was made with {_said(was, names)}; this run has "
            f"{_said(now, names)}, and one column never mixes the two. Make both: give this one "
            "another name (rename the head's, labels' or scores' file or column, or write "
            "NAME=prompt:…). Start over: --fresh (what is there is moved aside)."
        ) from error


def _said(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={str(values.get(name))[:16]!r}" for name in names)


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


def has_words(caption: str | None) -> bool:
    """Tell whether a caption says anything.

    >>> has_words("  ")
    False
    """
    return bool(caption and caption.strip())


def read_labels(path: str | None) -> tuple[str, str] | None:
    """A file of labels as (path, text), None where none is named."""
    if path is None:
        return None
    folder, _, name = path.rpartition("/")
    return path, Folder(folder or ".").read_bytes(name).decode("utf-8", errors="replace")
