"""What a column of a dataset is: its type, where it comes from, its nulls and its range."""

from dataclasses import dataclass
from typing import Any

from laionkit.core.records import StageMade
from laionkit.core.schemas import EXTRA_FETCHED_COLUMNS, FETCHED_COLUMNS, PUBLISHED_COLUMNS

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


def score_origin(made: StageMade) -> str:
    """Say what computed a score column: ``computed by aesthetic-v2 on ViT-L-14/openai``."""
    facts = {**made.config, **made.facts}
    word = "declared" if facts.get("provenance") == "declared" else "computed"
    what = [str(facts[name]) for name in ("head", "backbone", "model") if facts.get(name)]
    return f"{word}: {' on '.join(what[:2])}" if what else word


def column_origin(name: str) -> str:
    """Say where a column that is no score comes from."""
    if name in FETCHED_COLUMNS or name in EXTRA_FETCHED_COLUMNS or name == "shard":
        return FETCHED
    return PUBLISHED if name in PUBLISHED_COLUMNS else CARRIED


def is_nested(kind: str) -> bool:
    """Whether values of this DuckDB type have no order to speak of."""
    return kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION", '"NULL"', "JSON"))
