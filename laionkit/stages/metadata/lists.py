"""Blocklists and opt-out lists: domains, links, LAION hashes and content hashes in any table.

What an entry is, its own form says: a link has a scheme, a content hash is 32 or 64 hex digits, a
LAION hash a signed integer, anything else that is a host name blocks it and its subdomains.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from laionkit.backends.open_table import open_table
from laionkit.backends.source_tables import SourceTable
from laionkit.backends.sources import SourceFile, find_sources
from laionkit.core.errors import InputError
from laionkit.ops.link_rows import repair

_COLUMNS = ("url", "link", "domain", "host", "hostname", "hash", "md5", "sha256")
_KINDS = (
    ("url", r"^[a-z][a-z0-9+.\-]*://\S+$"),
    ("digest", r"^([0-9a-f]{32}|[0-9a-f]{64})$"),
    ("hash", r"^-?\d+$"),
    ("domain", r"^[^\s/:@]+\.[^\s/:@]+$"),
)


def read_lists(files: Sequence[str]) -> Iterator[pa.Table]:
    """(kind, value) of every entry. Raises InputError naming an entry that is none of the kinds."""
    for source in find_sources(files):
        if not isinstance(source, SourceFile):
            raise InputError(f"{source.name} is no list: name a txt, csv or parquet file")
        table = open_table(source)
        column = _column(table)
        if "." in column and column.lower() not in _COLUMNS:  # a list without a header line
            yield _classify(pa.chunked_array([[column]]), table.name)
        for batch in table.batches([column]):
            yield _classify(repair(batch.table[column], pa.string()), table.name)


def _column(table: SourceTable) -> str:
    by_lower = {name.lower(): name for name in table.schema.names}
    named = (by_lower[name] for name in _COLUMNS if name in by_lower)
    return next(named, str(table.schema.names[0]))


def _classify(column: pa.ChunkedArray, name: str) -> pa.Table:
    entries = pc.utf8_trim_whitespace(column.drop_null())
    skip = pc.or_(pc.equal(entries, ""), pc.starts_with(entries, "#"))
    entries = entries.filter(pc.invert(skip))
    lower = pc.utf8_lower(entries)
    kinds = pa.nulls(len(entries), pa.string())
    for kind, pattern in reversed(_KINDS):
        kinds = pc.if_else(pc.match_substring_regex(lower, pattern), kind, kinds)
    if kinds.null_count:
        odd = entries.filter(pc.is_null(kinds))[0].as_py()
        raise InputError(
            f"{name}: {odd[:80]!r} is no domain, link, LAION hash, md5 or sha256: one entry a line"
        )
    values = pc.if_else(pc.equal(kinds, "url"), entries, lower)
    return pa.table({"kind": kinds, "value": values})
