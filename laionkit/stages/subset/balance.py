"""The steps that even a subset out: caps per domain, column or cluster, and MetaCLIP's caps."""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import xxhash

from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder
from laionkit.core.lists import read_lines
from laionkit.core.table import DatasetTable
from laionkit.ops.entries import Entries, keep_chance
from laionkit.ops.predicates import quote_name
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.selection import Selection
from laionkit.stages.subset.steps import KEY_VALUE, check_column
from laionkit.stages.subset.vectors import gather

DOMAIN = "domain"
CLUSTER = "cluster"
NO_ENTRY = "no entry of the list"
_ROWS = 100_000
_HASHES = 2.0**64


def check_groups(table: DatasetTable, config: SubsetConfig) -> None:
    """Raise ConfigError where what caps or balances is no column."""
    if config.cap is not None:
        if config.cap_by not in (DOMAIN, CLUSTER):
            check_column(table, config.cap_by, "cap_by")
        elif config.cap_by == DOMAIN and DOMAIN not in table.columns:
            check_column(table, "url", "cap_by")
    if config.balance:
        check_column(table, config.caption, "caption")


def cap_groups(selection: Selection, config: SubsetConfig) -> None:
    """Keep at most `cap` of each group; the best by `by`, else by chance."""
    table, column = selection.table, config.cap_by
    if column == CLUSTER and CLUSTER not in table.columns:
        _make_clusters(selection, config)
        wanted = selection.left({"key", config.by or "key"})
        rows = f"SELECT s.*, c.g FROM ({wanted}) s JOIN clustered c ON c.key = s.key"
    else:
        group, needs = quote_name(column), column
        if column == DOMAIN and DOMAIN not in table.columns:
            group, needs = "lower(regexp_extract(url, '^[a-zA-Z]+://([^/:?#]+)', 1))", "url"
        wanted = selection.left({"key", needs, config.by or "key"})
        rows = f"SELECT *, {group} AS g FROM ({wanted})"
    rule = f"md5('{config.shuffle_seed or 0}:cap:' || key)"
    if config.by:
        rule = f"{quote_name(config.by)} DESC NULLS LAST, {rule}"
    found = table.arrow(
        f"SELECT key, g::VARCHAR AS value FROM (SELECT key, g, row_number() OVER "
        f"(PARTITION BY g ORDER BY {rule}) AS place FROM ({rows}) "
        f"WHERE g IS NOT NULL AND g::VARCHAR <> '') WHERE place > {config.cap}"
    )
    step = f"at most {config.cap} per {column}"
    selection.drop(step, f"over {config.cap} per {column}", found)


def _make_clusters(selection: Selection, config: SubsetConfig) -> None:
    """Make the temporary table `clustered` (key, g): spherical k-means over what is left.

    A picture without a vector is in no cluster, and so under no cap.
    """
    from laionkit.backends.near_cells import cluster

    table = selection.table
    table.execute(
        "CREATE OR REPLACE TEMP TABLE ordered AS SELECT key, row_number() OVER (ORDER BY key) - 1 "
        "AS place FROM judged WHERE code = 0"
    )
    keys = table.arrow("SELECT key FROM ordered ORDER BY place").column("key")
    with gather(table, config.model or None) as vectors:
        there = np.flatnonzero(vectors.there)
        clusters = config.clusters or max(1, round(len(there) ** 0.5))
        if 0 < len(there) < clusters:
            raise ConfigError(
                f"clusters={clusters}: only {len(there)} pictures are left to be grouped"
            )
        own_N = np.zeros(0, np.int64)
        if len(there):
            seed = config.shuffle_seed or 0
            _, own_N = cluster(lambda rows: vectors.read(there[rows]), len(there), clusters, seed)
    table.execute("DROP TABLE IF EXISTS clustered")
    table.insert("clustered", pa.table({"key": keys.take(there), "g": own_N}))


def balance_captions(selection: Selection, config: SubsetConfig) -> None:
    """Even out what captions speak of, as MetaCLIP does: a cap for each entry of a list.

    Whether an entry keeps a sample is drawn from the seed, the key and the entry: the same
    whatever else is in the dataset.
    """
    entries = Entries(read_entries(config.balance))
    count_E = np.zeros(len(entries.names), np.int64)
    for _, caption in _captions(selection, config):
        count_E[entries.matched(caption)] += 1
    chance_E = keep_chance(count_E, config.balance_cap)
    unmatched: list[str] = []
    over: list[tuple[str, str]] = []
    for key, caption in _captions(selection, config):
        found = entries.matched(caption)
        if not found:
            unmatched.append(key)
        elif not any(_draw(config, key, entries.names[e]) < chance_E[e] for e in found):
            over.append((key, entries.names[min(found, key=lambda e: int(count_E[e]))]))
    step = f"balanced by {config.balance.rpartition('/')[2]}"
    none = pa.table({"key": unmatched, "value": [None] * len(unmatched)}, KEY_VALUE)
    selection.drop(step, NO_ENTRY, none)
    rows = {"key": [key for key, _ in over], "value": [entry for _, entry in over]}
    selection.drop(step, f"over {config.balance_cap} per entry", pa.table(rows, KEY_VALUE))


def read_entries(path: str) -> list[str]:
    """The entries of a list: text with one a line, or JSON as MetaCLIP's metadata.json."""
    if not path.endswith(".json"):
        return list(dict.fromkeys(read_lines(path)))
    folder, _, name = path.rpartition("/")
    try:
        found = json.loads(Folder(folder or ".").read_bytes(name))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, list) or not found or not all(isinstance(e, str) for e in found):
        raise InputError(f"{path} must hold a JSON list of texts")
    return list(dict.fromkeys(entry for entry in found if entry.strip()))


def _captions(selection: Selection, config: SubsetConfig) -> Iterator[tuple[str, str]]:
    sql = f"SELECT key, coalesce({quote_name(config.caption)}::VARCHAR, '') AS caption FROM "
    for batch in selection.table.batches(
        f"{sql}({selection.left({'key', config.caption})})", _ROWS
    ):
        keys, captions = (batch.column(name).to_pylist() for name in ("key", "caption"))
        yield from zip(keys, captions, strict=True)


def _draw(config: SubsetConfig, key: str, entry: str) -> float:
    """A number in [0, 1) that depends on the seed, the key and the entry alone."""
    drawn = f"{config.shuffle_seed or 0}:balance:{key}:{entry}".encode()
    return xxhash.xxh3_64_intdigest(drawn) / _HASHES
