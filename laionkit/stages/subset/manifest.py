"""manifest.json: one root hash that stands for a subset, and the check that it still holds.

The root covers the hash of each sample (its JSON, caption and picture) in key order, the recipe,
what computed each score, the counts and the version of laionkit. It depends on no path, name,
clock or number of threads: the same inputs give the same root on any machine.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.embeddings import score_columns
from laionkit.core.engine import connect
from laionkit.core.files import Folder, Written
from laionkit.core.progress import Counts
from laionkit.core.records import ShardRecord
from laionkit.core.schemas import SUBSETS
from laionkit.core.tars import image_member, read_contents, read_member
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.kept import KeptRows
from laionkit.stages.subset.layout import (
    KEPT_FILE,
    MANIFEST,
    SAMPLE_HASH,
    SUBSET_FILE,
    SUBSET_SHARD,
    VIEW_FILE,
    find_record,
    json_sql,
    sample_hash,
)
from laionkit.stages.subset.pictures import Pictures

MAX_PROBLEMS = 20
_PROVENANCE = ("head", "head_sha256", "backbone", "weights_sha256", "provenance")
# What names a subset or lays it out; what is in it does not depend on these.
_LAYOUT = ("name", "as_", "samples_per_shard")


@dataclass(frozen=True)
class Verified:
    """The outcome of a check: the root recomputed, samples checked, what did not hold."""

    root: str
    samples: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return not self.problems


def write_manifest(
    folder: Folder,
    dataset: Folder,
    config: SubsetConfig,
    counts: Counts,
    hashed: str,
    given: Mapping[str, str],
) -> tuple[Written, str]:
    """Write manifest.json for samples whose hash is `hashed`; return the root too.

    `given`: settings that name a file, with the hash of its content, which stands for its path.
    """
    what = {name: value for name, value in config.what().items() if name not in _LAYOUT}
    what |= {name: {"sha256": content} for name, content in given.items()}
    stated = {
        "format": 1,
        "samples": counts.ok,
        "samples_sha256": hashed,
        "counts": counts.model_dump(mode="json", by_alias=True),
        "recipe": what,
        "scores": _provenance(dataset),
        "laionkit": _version(),
    }
    root = _root(stated)
    return folder.write_json(MANIFEST, {"root": root, **stated}), root


def samples_hash(folder: Folder) -> str:
    """Hash over the key and the hash of each sample of kept.parquet, in key order."""
    digest = hashlib.sha256()
    with KeptRows(folder) as kept:
        lines = f"SELECT key || ' ' || {SAMPLE_HASH} || chr(10) AS line FROM kept ORDER BY key"
        for batch in kept.batches(lines):
            digest.update("".join(batch.column(0).to_pylist()).encode())
    return digest.hexdigest()


def verify(dataset: str, name: str) -> Verified:
    """Check a subset against its manifest and record: every file, every sample, the root.

    Raises InputError where there is no such subset.
    """
    whole = Folder(dataset)
    record = find_record(whole, name)
    folder = whole.folder(f"{SUBSETS}/{name}")
    problems = list(_check_files(whole, record))
    if problems:
        return Verified("", 0, tuple(problems[:MAX_PROBLEMS]))
    samples = 0
    for problem in _check_samples(whole, folder, record):
        samples += problem is None
        if problem is not None and len(problems) < MAX_PROBLEMS:
            problems.append(problem)
    manifest = folder.read_json(MANIFEST)
    stated = {key: value for key, value in manifest.items() if key != "root"}
    root = _root({**stated, "samples_sha256": samples_hash(folder)})
    if root != manifest["root"]:
        problems.append(f"the root is {root}, and {MANIFEST} says {manifest['root']}")
    return Verified(root, samples, tuple(problems))


def _check_files(dataset: Folder, record: ShardRecord) -> Iterator[str]:
    for entry in record.files.values():
        if not dataset.exists(entry.path):
            yield f"{entry.path} is missing"
        elif dataset.size(entry.path) != entry.size:
            yield f"{entry.path} has {dataset.size(entry.path)} bytes, recorded were {entry.size}"
        elif dataset.sha256(entry.path) != entry.sha256:
            yield f"{entry.path} is not what was written: its sha256 differs"


def _check_samples(dataset: Folder, folder: Folder, record: ShardRecord) -> Iterator[str | None]:
    """For each sample None, or what is wrong with it."""
    with folder.open(KEPT_FILE) as file:
        kept = pq.ParquetFile(file)
        for group in range(kept.num_row_groups):
            rows = kept.read_row_group(group)
            if "view" in record.files:
                found = _view_hashes(dataset, folder, group)
            elif SUBSET_SHARD in rows.column_names:
                found = _tar_hashes(folder, rows.column(SUBSET_SHARD)[0].as_py())
            elif SUBSET_FILE in rows.column_names:
                found = dict(_file_hashes(folder, rows))
            else:
                found = _row_hashes(rows)
            stated = rows.select(["key", SAMPLE_HASH]).to_pylist()
            for row in stated:
                same = found.get(row["key"]) == row[SAMPLE_HASH]
                yield None if same else f"sample {row['key']} is not what was written"


def _tar_hashes(folder: Folder, shard: str) -> dict[str, str]:
    found = {}
    with folder.open(f"{shard}.tar") as file:
        for key, members in read_contents(file).samples.items():
            image = image_member(members)
            if image is not None and {"json", "txt"} <= set(members):
                line, text = (read_member(file, members[name]) for name in ("json", "txt"))
                found[key] = sample_hash(line, text, read_member(file, image[1]))
    return found


def _file_hashes(folder: Folder, rows: pa.Table) -> Iterator[tuple[str, str]]:
    for key, name in zip(*(rows.column(c).to_pylist() for c in ("key", SUBSET_FILE)), strict=True):
        base = name.rpartition(".")[0]
        names = (f"{base}.json", f"{base}.txt", name)
        if all(folder.exists(each) for each in names):
            yield key, sample_hash(*(folder.read_bytes(each) for each in names))


def _view_hashes(dataset: Folder, folder: Folder, group: int) -> dict[str, str]:
    with folder.open(VIEW_FILE) as file:
        rows = pq.ParquetFile(file).read_row_group(group)
    pictures = Pictures(dataset)
    try:
        return {
            key: sample_hash(line, text, image)
            for key, _, image, text, line in pictures.samples(rows)
        }
    finally:
        pictures.close()


def _row_hashes(rows: pa.Table) -> dict[str, str]:
    table = rows.drop_columns([SAMPLE_HASH])
    with connect() as con:
        con.register("kept", table)
        kinds = {name: str(kind) for name, kind, *_ in con.execute("DESCRIBE kept").fetchall()}
        lines = con.execute(f"SELECT key, {json_sql(kinds)} FROM kept s").fetchall()
    return {key: sample_hash(line.encode(), b"", b"") for key, line in lines}


def _provenance(dataset: Folder) -> dict[str, dict[str, Any]]:
    """What computed each score column: head, model, and the hashes of their weights."""
    found = {}
    for column, made in sorted(score_columns(dataset).items()):
        facts = {**made.config, **made.facts}
        found[column] = {name: facts[name] for name in _PROVENANCE if facts.get(name)}
    return found


def _root(stated: Mapping[str, Any]) -> str:
    text = json.dumps(stated, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _version() -> str:
    try:
        return importlib.metadata.version("laionkit")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
