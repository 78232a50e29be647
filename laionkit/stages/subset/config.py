"""The settings of a subset: what is kept, and as what it is written."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from laionkit.core.config import Effort, StageConfig

Form = Literal["shards", "view", "parquet"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class SubsetConfig(StageConfig):
    """What a subset keeps and how it is written.

    The order of steps: the picture is there, the preset, `where`.
    """

    name: str
    """Name of the subset, and of its folder below subsets/: letters, digits, ``-``, ``_``, ``.``"""
    where: str = ""
    """Keep what this SQL expression over the dataset's columns holds for
    (`laionkit columns` lists them): ``aesthetic_v2 >= 6 AND punsafe < 0.1``."""
    preset: str = ""
    """A filter people ask for by name: laion-aesthetics-v2-5plus (4.5, 4.75, 5, 6, 6.25, 6.5),
    sd-v1, sd-v2, laion-art, laion-high-resolution, relaion-safe, datacomp-basic, clip-top-30."""
    language: str = "en"
    """What the preset datacomp-basic asks of the column `language`; `any` for all. `en` is
    DataComp's."""
    keep_nulls: bool = False
    """Keep a sample for which a condition is neither true nor false, because a column it reads is
    null. Off: such a sample is dropped with the reason ``null:COLUMN``, so that a safety filter
    never lets through what was never measured."""
    as_: Form = "shards"
    """shards: tars with a copy of each picture. view: no copy, a list of where the kept pictures
    lie in the dataset's own shards. parquet: the list of kept rows alone (url, caption, scores)."""
    caption: str = "caption"
    """Column that fills KEY.txt."""
    samples_per_shard: Annotated[int, Field(ge=1)] = 10_000
    """Samples in each tar, the last one excepted. 10,000 is img2dataset's."""
    shuffle_seed: int | None = None
    """Order the samples by chance over the whole subset, the same for the same seed. Not given:
    in the order of keys."""
    allow_small: bool = False
    """Keep pictures that were stored smaller than the sides the preset asks for."""
    memory_mb: Effort[Annotated[int, Field(ge=64)]] = 1024
    """Memory for the query engine, in MiB; above it, it spills to disk."""
    timeout_s: Effort[Annotated[float, Field(gt=0)]] = 1800.0
    """Seconds after which a single query is given up."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name={self.name!r}: use letters, digits, '-', '_' and '.', such as best-of-v2"
            )
        return self
