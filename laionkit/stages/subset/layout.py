"""What a subset's folder holds, and what one sample of it is: its JSON, caption and picture."""

import hashlib
import struct
from collections.abc import Mapping

import pyarrow as pa

from laionkit.core.errors import InputError, did_you_mean
from laionkit.core.files import Folder
from laionkit.core.records import ShardRecord, StageRecords
from laionkit.core.schemas import RECORDS, SUBSETS
from laionkit.ops.predicates import quote_name

KEPT_FILE = "kept.parquet"
VIEW_FILE = "view.parquet"
MANIFEST = "manifest.json"
# Columns of kept.parquet beside the dataset's own.
SUBSET_SHARD = "subset_shard"
SUBSET_FILE = "subset_file"
SAMPLE_HASH = "sample_sha256"
# A subset's one record.
WHOLE = "all"
_SIZE = struct.Struct(">Q").pack


def find_record(dataset: Folder, name: str) -> ShardRecord:
    """The record of a finished subset. Raises InputError with the names there are."""
    records = StageRecords(dataset, f"subset/{name}")
    if WHOLE not in records.names():
        there = dataset.folders(f"{RECORDS}/subset")
        there = [n for n in there if WHOLE in StageRecords(dataset, f"subset/{n}").names()]
        known = f"; there are {', '.join(there)}" if there else ": it has none"
        raise InputError(f"{dataset} has no subset {name!r}{did_you_mean(name, there)}{known}")
    return records.read(WHOLE)


def kept_keys(dataset: Folder, name: str) -> pa.Table:
    """The keys that a subset keeps. Raises InputError where there is no such subset."""
    find_record(dataset, name)
    return dataset.read_table(f"{SUBSETS}/{name}/kept.parquet", columns=["key"])


def sample_hash(line: bytes, text: bytes, image: bytes | memoryview) -> str:
    """Hash of one sample: its KEY.json, KEY.txt and picture, each with its length before it."""
    digest = hashlib.sha256(
        b"%b%b%b%b%b" % (_SIZE(len(line)), line, _SIZE(len(text)), text, _SIZE(len(image)))
    )
    digest.update(image)
    return digest.hexdigest()


def json_sql(columns: Mapping[str, str]) -> str:
    """SQL of KEY.json: every column under its name; what JSON has no number for is null."""
    parts = []
    for name, kind in columns.items():
        cell = f"s.{quote_name(name)}"
        if kind in ("FLOAT", "DOUBLE"):
            cell = f"CASE WHEN isfinite({cell}) THEN {cell} END"
        elif kind == '"NULL"':
            cell = "NULL::VARCHAR"
        parts.append(f"{quote_name(name)} := {cell}")
    return f"to_json(struct_pack({', '.join(parts)}))::VARCHAR"
