"""The steps that look at more than one row: duplicates, queries, lists of keys, other subsets."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.embeddings import list_embeddings
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder
from laionkit.core.lists import read_keys, read_lines
from laionkit.core.table import DatasetTable
from laionkit.ops.predicates import Term, quote_name
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.layout import kept_keys
from laionkit.stages.subset.pictures import PLACE_COLUMNS, READ_AHEAD, Pictures
from laionkit.stages.subset.selection import Selection
from laionkit.stages.subset.vectors import gather

DUPLICATE = "duplicate-of"
_NUMBERS = ("FLOAT", "DOUBLE", "DECIMAL", "HUGEINT", "BIGINT", "INTEGER", "SMALLINT", "TINYINT",
            "UHUGEINT", "UBIGINT", "UINTEGER", "USMALLINT", "UTINYINT")  # fmt: skip
KEY_VALUE = pa.schema([("key", pa.string()), ("value", pa.string())])


def take_from_subsets(selection: Selection, config: SubsetConfig) -> None:
    """Keep what is in any of, in all of, and in none of the subsets named."""
    dataset = selection.table.folder
    if config.any_of:
        keys = pa.concat_tables([kept_keys(dataset, name) for name in config.any_of])
        name = f"in any of {', '.join(config.any_of)}"
        selection.keep_only(name, f"not {name}", keys)
    for other in config.all_of:
        selection.keep_only(f"in {other}", f"not in {other}", kept_keys(dataset, other))
    for other in config.none_of:
        selection.drop(f"not in {other}", f"in {other}", with_value(kept_keys(dataset, other)))
    if config.keys:
        selection.keep_only(
            "in the list of keys", "not in the list of keys", read_keys(config.keys)
        )


def take_nearest(selection: Selection, config: SubsetConfig, terms: Sequence[Term]) -> None:
    """Keep what is among the nearest of any query, searched under the filters before it.

    Raises InputError where the index does not hold the embeddings as they are now.
    """
    from laionkit.search.searcher import Searcher

    _check_index(selection.table.folder, config.model or None)
    texts = [config.query] if config.query.strip() else []
    if config.queries:
        texts += read_lines(config.queries)
    where = " AND ".join(f"({term.sql})" for term in terms) or None
    searcher = Searcher(selection.table.folder.url, config.model or None)
    found = [
        searcher.search(text, k=config.nearest, where=where, threshold=config.match_above)
        for text in texts
    ]
    keys = pa.table({"key": pa.array([k for hits in found for k in hits["key"]], pa.string())})
    said = repr(texts[0][:60]) if len(texts) == 1 else f"any of {len(texts)} queries"
    selection.keep_only(
        f"nearest {config.nearest} to {said}", f"not among the nearest to {said}", keys
    )


def _check_index(dataset: Folder, model: str | None) -> None:
    from laionkit.search.layout import index_folder, read_pointer
    from laionkit.search.opening import choose_index

    name = choose_index(dataset, model)
    pointer = read_pointer(index_folder(dataset, name))
    segments = pointer.segments if pointer else ()
    indexed = {shard: content for s in segments for shard, content in s.shards.items()}
    refs = list_embeddings(dataset, name)
    later = [ref.name for ref in refs if indexed.get(ref.name) != ref.content]
    if indexed and later:
        raise InputError(
            f"the index {name} does not hold {len(later)} of {len(refs)} shards as they are now, "
            f"{later[0]} among them, so that no query would find their pictures: run laionkit "
            f"index {dataset}"
        )


def drop_exact(selection: Selection, config: SubsetConfig) -> None:
    """Of pictures whose bytes were the same (sha256), keep the best."""
    if "sha256" not in selection.table.columns:
        raise ConfigError("dedup=exact needs the column sha256, which comes with laionkit fetch")
    rule = keep_rule(selection.table, config.dedup_keep)
    table = selection.table
    found = table.arrow(
        "SELECT key, keeper AS value FROM (SELECT s.key, first_value(s.key) OVER "
        f"(PARTITION BY sha256 ORDER BY {rule}) AS keeper FROM "
        f"({selection.left(_rule_columns(config.dedup_keep) | {'sha256'})}) s "
        "WHERE sha256 IS NOT NULL) WHERE keeper <> key"
    )
    selection.drop("dedup exact", DUPLICATE, found)


def drop_perceptual(selection: Selection, config: SubsetConfig) -> None:
    """Of pictures whose perceptual hashes are within `dedup_bits`, keep the best."""
    from laionkit.ops.dedup import hash_pairs

    keys = order_keys(selection, config)
    hash_N = np.zeros(len(keys), np.uint64)
    hashed = np.zeros(len(keys), bool)
    for place, found in _perceptual_hashes(selection, len(keys)):
        hash_N[place], hashed[place] = found, True
    there = np.flatnonzero(hashed)
    pairs = (there[pair_P2] for pair_P2 in hash_pairs(hash_N[there], config.dedup_bits))
    _drop_pairs(selection, "dedup perceptual", keys, pairs)


def _perceptual_hashes(selection: Selection, count: int) -> Iterator[tuple[int, int]]:
    """The place in `ordered` and the hash of each picture that can be decoded, on all cores."""
    from laionkit.ops.dedup import SHRUNK_PX, perceptual_hash
    from laionkit.ops.images import PictureError, decode

    places = ", ".join(f"p.{name}" for name in PLACE_COLUMNS)
    rows = selection.table.batches(
        f"SELECT o.place, j.shard, {places} FROM ordered o JOIN places p ON p.key = o.key "
        "JOIN judged j ON j.key = o.key ORDER BY j.shard, p.image_offset"
    )

    def look(data: bytes) -> int | None:
        try:
            picture = decode(data, shrink_to=lambda size: (SHRUNK_PX, SHRUNK_PX))
        except PictureError:
            return None
        return perceptual_hash(picture.rgb)

    seen = 0
    with (
        closing(Pictures(selection.table.folder)) as pictures,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for batch in rows:
            for start in range(0, len(batch), READ_AHEAD):
                selection.progress.at("dedup perceptual", seen, count, "pictures")
                part = (column.to_pylist() for column in batch.slice(start, READ_AHEAD).columns)
                places, shards, _, offsets, sizes = part
                images = pictures.read_all(list(zip(shards, offsets, sizes, strict=True)))
                for place, found in zip(places, pool.map(look, images), strict=True):
                    if found is not None:
                        yield place, found
                seen += len(images)


def drop_semantic(selection: Selection, config: SubsetConfig) -> None:
    """Of pictures whose embeddings' cosine is at least `dedup_cosine`, keep the best."""
    from laionkit.backends.near import REACH, near_pairs

    keys = order_keys(selection, config)
    with gather(selection.table, config.model or None) as vectors:
        there = np.flatnonzero(vectors.there)
        reach = 1 if config.dedup_exact else REACH
        found = near_pairs(
            lambda rows: vectors.read(there[rows]),
            len(there),
            config.dedup_cosine,
            reach,
            tell=lambda done, parts: selection.progress.at("dedup semantic", done, parts, "parts"),
        )
        _drop_pairs(selection, "dedup semantic", keys, (there[pair_P2] for pair_P2 in found))


def check_column(table: DatasetTable, column: str, setting: str) -> None:
    """Raise ConfigError where `column` is none of the dataset's."""
    if column not in table.columns:
        raise ConfigError(
            f"{setting}={column!r} is no column; there are {', '.join(table.columns)}"
        )


def check_score(table: DatasetTable, column: str, setting: str) -> None:
    """Raise ConfigError where `column` is none of the dataset's, or holds no numbers."""
    check_column(table, column, setting)
    if not table.columns[column].startswith(_NUMBERS):
        raise ConfigError(
            f"{setting}={column!r} holds {table.columns[column]}: name a column of numbers, such "
            "as a score (laionkit columns lists them)"
        )


def keep_rule(table: DatasetTable, keep: str) -> str:
    """ORDER BY of who stays among alike samples: the best first."""
    if keep == "first":
        return "key"
    if keep == "largest":
        check_column(table, "original_width", "dedup_keep")
        return "original_width::BIGINT * original_height DESC NULLS LAST, key"
    check_score(table, keep, "dedup_keep")
    return f"{quote_name(keep)} DESC NULLS LAST, key"


def with_value(keys: pa.Table) -> pa.Table:
    """Keys with an empty value beside."""
    return pa.table({"key": keys.column("key"), "value": pa.nulls(len(keys), pa.string())})


def _rule_columns(keep: str) -> set[str]:
    if keep == "largest":
        return {"key", "original_width", "original_height"}
    return {"key"} if keep == "first" else {"key", keep}


def order_keys(selection: Selection, config: SubsetConfig) -> pa.ChunkedArray:
    """Make the temporary table `ordered` (key, place) of what is left, the best first."""
    table = selection.table
    rule = keep_rule(table, config.dedup_keep)
    table.execute(
        "CREATE OR REPLACE TEMP TABLE ordered AS SELECT s.key, row_number() OVER "
        f"(ORDER BY {rule}) - 1 AS place "
        f"FROM ({selection.left(_rule_columns(config.dedup_keep))}) s"
    )
    return table.arrow("SELECT key FROM ordered ORDER BY place").column("key")


def _drop_pairs(
    selection: Selection, step: str, keys: pa.ChunkedArray, pairs: Iterable[NDArray[np.int64]]
) -> None:
    from laionkit.ops.dedup import keep_greedily

    found: Sequence[NDArray[np.int64]] = [p for p in pairs if len(p)]
    pair_P2 = np.concatenate(found) if found else np.empty((0, 2), np.int64)
    keeper_N = keep_greedily(len(keys), pair_P2)
    lost = np.flatnonzero(keeper_N >= 0)
    said = pa.table({"key": keys.take(lost), "value": keys.take(keeper_N[lost])}, KEY_VALUE)
    selection.drop(step, DUPLICATE, said)
