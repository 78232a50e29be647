"""The settings of a subset: what is kept, and as what it is written."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from laionkit.core.config import Effort, Names, StageConfig, split_names
from laionkit.ops.resize_modes import ResizeMode

Alike = Literal["exact", "perceptual", "semantic"]
Cosine = Annotated[float, Field(gt=0, le=1)]
Form = Literal["shards", "view", "parquet", "files"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class SubsetConfig(StageConfig):
    """What a subset keeps and how it is written.

    The order of steps: the picture is there, the preset, `where`, other subsets (`any_of`,
    `all_of`, `none_of`), `keys`, `query` and `queries`, the picture is in its tar,
    `decontaminate`, `dedup` (exact, perceptual, semantic), `top`, `cap`, `balance`.
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
    any_of: Names = ()
    """Keep only what is in at least one of these subsets of the same dataset."""
    all_of: Names = ()
    """Keep only what is in every one of these subsets."""
    none_of: Names = ()
    """Drop what is in any of these subsets."""
    keys: str = ""
    """Keep only the keys of this file: parquet with a column `key`, or text with one a line."""
    query: str = ""
    """Keep only the pictures nearest to this text, by the index. What the preset and `where` drop
    takes no place among them."""
    queries: str = ""
    """A text file of queries, one a line: what is near any of them is kept."""
    nearest: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """How many pictures each query brings."""
    match_above: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Least cosine of a picture with its query; for CLIP's text queries 0.2 to 0.35 is usual."""
    decontaminate: str = ""
    """Drop pictures near those of an evaluation set: a folder of pictures, which are embedded with
    the model that embedded the dataset, an .npy file of that model's vectors, one a row, or another
    dataset embedded with it."""
    decontaminate_cosine: Cosine = 0.95
    """Cosine from which a picture counts as one of the evaluation set."""
    dedup: Annotated[tuple[Alike, ...], BeforeValidator(split_names)] = ()
    """Keep one of several alike: exact (the same bytes), perceptual (the same picture scaled or
    re-encoded, by a 64-bit hash), semantic (nearly the same embedding)."""
    dedup_keep: str = "first"
    """Which one stays: first (by key), largest (original pixels), or the name of a score column
    for the one with the highest."""
    dedup_bits: Annotated[int, Field(ge=0, le=16)] = 4
    """Bits of 64 in which two perceptual hashes may differ. 4 finds rescaled and re-encoded
    copies and next to no others."""
    dedup_cosine: Cosine = 0.95
    """Cosine from which two embeddings are alike. SemDeDup's middle setting on LAION."""
    dedup_exact: bool = False
    """Miss no two alike embeddings for certain, in twice the time. Without it two may be missed
    that are in two clusters of more than 20,000 embeddings, more than half as far below a cosine
    of 1 as `dedup_cosine`, and whose difference points straight from one cluster to the other, by
    45° or less: of 5,000 such pairs none did."""
    model: str = ""
    """Short name of the embeddings to compare by; needed only where a dataset has several."""
    top: Annotated[int, Field(ge=1)] | None = None
    """Keep this many, those with the highest `by`."""
    top_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep this share of what is left, 0 to 1, those with the highest `by`."""
    by: str = ""
    """Score column for `top` and `top_share`, and for who stays under `cap`."""
    cap: Annotated[int, Field(ge=1)] | None = None
    """Keep at most this many of each group of `cap_by`."""
    cap_by: str = "domain"
    """What a group is: domain (the host of url), cluster (of the embeddings), or a column such as
    a label."""
    clusters: Annotated[int, Field(ge=1)] | None = None
    """How many clusters `--cap-by cluster` makes. Not given: the square root of what is left."""
    balance: str = ""
    """A list of what captions may speak of, as MetaCLIP's: text with one entry a line, or JSON.
    A caption with none of its entries is dropped, and of an entry that many captions have, about
    `balance_cap` stay, drawn by chance."""
    balance_cap: Annotated[int, Field(ge=1)] = 20_000
    """How many samples of each entry of `balance` are kept. 20,000 is MetaCLIP's for 400 M."""
    as_: Form = "shards"
    """shards: tars with a copy of each picture. view: no copy, a list of where the kept pictures
    lie in the dataset's own shards. parquet: the list of kept rows alone (url, caption, scores).
    files: files/KEY.jpg, KEY.txt and KEY.json for up to 100,000 samples."""
    resize_mode: ResizeMode = "no"
    """Resize the copies: border, keep_ratio, keep_ratio_largest or center_crop, as fetch does. no
    copies each picture's bytes."""
    image_size: Annotated[int, Field(ge=1, le=65535)] = 256
    """Target side in pixels of `resize_mode`; which side, the mode says."""
    resize_only_if_bigger: bool = False
    """Leave pictures alone that are smaller than image_size."""
    encode_format: Literal["same", "jpg", "png", "webp"] = "same"
    """Format of the copies. same keeps each picture's own."""
    encode_quality: Annotated[int, Field(ge=0, le=100)] = 95
    """Quality of a jpg or webp that is encoded anew, 1 to 100; compression of png, 0 to 9."""
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
    dry_run: Effort[bool] = False
    """Count only: the funnel, what other thresholds would keep and the bytes, from stored scores
    alone. Nothing is written."""
    timeout_s: Effort[Annotated[float, Field(gt=0)]] = 1800.0
    """Seconds after which a single query is given up."""

    @property
    def reshapes(self) -> bool:
        """Whether pictures are resized or encoded anew."""
        return self.resize_mode != "no" or self.encode_format != "same"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name={self.name!r}: use letters, digits, '-', '_' and '.', such as best-of-v2"
            )
        if self.top is not None and self.top_share is not None:
            raise ValueError("top and top_share exclude each other: give one")
        if (self.top is not None or self.top_share is not None) and not self.by:
            raise ValueError("top needs by: the score column, such as --by aesthetic_v2")
        if self.match_above is not None and not (self.query.strip() or self.queries):
            raise ValueError("match_above needs query or queries: what is to be near")
        return self
