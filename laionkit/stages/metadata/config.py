"""The settings of metadata: which rows of the sources become the work list, and how."""

from typing import Annotated, Literal

from pydantic import Field

from laionkit.core.config import Effort, Names, StageConfig
from laionkit.core.keys import DEFAULT_SHARD_SIZE


class MetadataConfig(StageConfig):
    """How sources become a work list.

    The order of steps, each dropped row naming the first it failed: the preset's conditions, those
    of `where`, malformed rows, `blocklist`, `optout`, `sample`, the preset's best share, `dedup`,
    `limit`. Without filters only malformed rows drop.
    """

    where: str = ""
    """Keep what this SQL expression over the canonical columns holds for, such as
    ``similarity >= 0.3 AND punsafe < 0.1``; each top-level AND term is a reason of its own."""
    preset: str = ""
    """A filter people ask for by name, over published columns: laion-aesthetics-v2-5plus (4.5,
    4.75, 5, 6, 6.25, 6.5), sd-v1, sd-v2, laion-art, laion-high-resolution, relaion-safe,
    datacomp-basic, clip-top-30."""
    language: str = "en"
    """What the preset datacomp-basic asks of the column `language`; `any` for all."""
    null: Literal["auto", "keep", "drop"] = "auto"
    """A row whose column is null where a filter names it: keep it, or drop it with the reason
    ``null:COLUMN``. auto drops where the column is about safety (punsafe, pwatermark, nsfw…), else
    keeps and counts."""
    dedup: Literal["none", "url", "url+caption", "hash"] = "none"
    """Keep the first row of equal url, url and caption, or published hash; exact."""
    normalize_urls: bool = False
    """Store links with scheme and host in lower case, without default port and fragment; dedup
    and lists then see them so. The hash stays that of the published link."""
    sample: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep about this share of the rows, chosen by each link's hash: the same links whatever
    their order."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Keep the first so many rows; where no step needs all rows, the rest is not even read."""
    shuffle: bool = False
    """Order the rows by chance, each host's links spread evenly over the run, so that fetch asks
    no host for all of them at once."""
    seed: int = 0
    """Seed of `sample` and `shuffle`."""
    blocklist: Names = ()
    """Files of domains (with their subdomains), links, LAION hashes or content hashes (md5,
    sha256), one a line or in the first column; what matches is dropped as blocklisted."""
    optout: Names = ()
    """The same for opt-out lists; what matches is dropped as opt_out_list."""
    join: str = ""
    """A second table (any format) whose columns are added where `on` is equal."""
    on: Literal["hash", "url", "uid"] = "hash"
    """The column by which `join` finds its rows; both tables have it."""
    links_schema: str = "auto"
    """The published set that the sources are of (laion-raw, laion2b-multi, laion-joined,
    improved-aesthetics, laion-aesthetic-v1, laion-coco, laion5b-embeddings, re-laion, datacomp,
    generic); auto decides by names, types and content."""
    url_column: str = ""
    """The column that holds the links, where its name does not tell."""
    caption_column: str = ""
    """The column that holds the captions, where its name does not tell."""
    keep_keys: str = ""
    """Take the keys from this column of the sources instead of numbering the rows. They must be
    unique and free of dots, slashes and spaces."""
    shard_size: Annotated[int, Field(ge=1)] = DEFAULT_SHARD_SIZE
    """Rows a shard, a power of ten; 10,000 is img2dataset's."""
    shard_digits: int | Literal["auto"] = "auto"
    """Digits of a shard's number, at least 5; auto fits the rows of the sources."""
    ledger: Literal["full", "counts"] = "full"
    """full: every dropped row with its reason in metadata/dropped.parquet; counts: numbers only."""
    append: Effort[bool] = False
    """Add the sources to the work list that is there, as new shards, without the links it has.
    A folder of pictures that is there needs no asking: what is new or has changed is added."""
    download: Effort[str] = ""
    """Keep remote sources as files in this folder: resumed after a cut, size and checksum
    verified; then read from there."""
    memory_mb: Effort[Annotated[int, Field(ge=256)]] = 768
    """Memory for the query engine, in MiB; above it, it spills to disk."""
