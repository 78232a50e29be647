"""How fast subsets are made and loaded, each beside what a user would do without laionkit.

    python benchmarks/subset.py --out benchmarks/results/subset.json
    python benchmarks/subset.py --parts dry_run --rows 10000000

Peers run in the same process environment on the same samples, alternating with ours; a ratio is
of medians. Everything is drawn here, nothing is downloaded.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from laionkit.core.embeddings import score_stage
from laionkit.core.files import Folder, Written
from laionkit.core.keys import KeyScheme
from laionkit.core.progress import Counts
from laionkit.core.records import FileEntry, ShardRecord, StageMade, StageRecords
from laionkit.core.schemas import FETCHED_COLUMNS

SHARD = 10_000


def record(folder: Folder, stage: str, shard: str, files: dict[str, Written], rows: int) -> None:
    """Commit what a stage would have committed."""
    records = StageRecords(folder, stage)
    made = StageMade(stage=stage, format_version=1, config={}, facts={"head": stage})
    records.folder.write_json("_stage.json", made.model_dump(mode="json"))
    entries = {role: FileEntry.of(written) for role, written in files.items()}
    records.commit(
        ShardRecord(shard=shard, fingerprint="-", counts=Counts.of(rows, {}), files=entries)
    )


def rows_of(shard: int, rows: int, rng: np.random.Generator) -> pa.Table:
    """One shard's table, as fetch writes it."""
    scheme = KeyScheme(SHARD, 5)
    words = np.array(["red", "blue", "cat", "sunset", "mountain", "portrait", "of", "a", "the"])
    captions = [" ".join(line) for line in words[rng.integers(0, len(words), (rows, 8))]]
    columns = {
        "key": scheme.keys(shard, rows),
        "url": pa.array([f"https://host{i % 977}.example/p/{shard}/{i}.jpg" for i in range(rows)]),
        "caption": pa.array(captions),
        "punsafe": pa.array(rng.random(rows), mask=rng.random(rows) < 0.05),
        "pwatermark": pa.array(rng.random(rows)),
        "similarity": pa.array(0.28 + 0.1 * rng.random(rows)),
        "status": pa.array(np.full(rows, "success", object)),
        "width": pa.array(np.full(rows, 256, np.int32)),
        "height": pa.array(np.full(rows, 256, np.int32)),
        "original_width": pa.array(rng.integers(200, 1500, rows, np.int32)),
        "original_height": pa.array(rng.integers(200, 1500, rows, np.int32)),
        "sha256": pa.array([f"{x:016x}" * 4 for x in rng.integers(0, 2**62, rows)]),
    }
    for name, kind in FETCHED_COLUMNS.items():
        columns.setdefault(name, pa.nulls(rows, kind))
    return pa.table(columns)


def write_tables(path: Path, rows: int) -> None:
    """A fetched and scored dataset of `rows` rows whose tars are stated, not there."""
    folder, rng = Folder(path), np.random.default_rng(0)
    for shard in range(-(-rows // SHARD)):
        name, count = f"{shard:05d}", min(SHARD, rows - shard * SHARD)
        table = rows_of(shard, count, rng)
        tar = Written(f"shards/{name}.tar", count * 30_000, "-")
        file = folder.write_table(f"shards/{name}.parquet", table)
        record(folder, "fetch", name, {"tar": tar, "table": file}, count)
        for column in ("aesthetic_v2", "clip_similarity"):
            values = pa.array(rng.normal(5, 1, count).astype(np.float32))
            scores = pa.table({"key": table["key"], "value": values})
            file = folder.write_table(f"scores/{column}/{name}.parquet", scores)
            record(folder, score_stage(column), name, {"scores": file}, count)


DRY_RUN = """
import json, sys, resource, time
started = time.monotonic()
from laionkit.stages.subset import SubsetConfig, subset
report = subset(sys.argv[1], SubsetConfig(name="best", dry_run=True, where=sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": round(time.monotonic() - started, 2), "peak_mib": round(peak),
    "rows": report.counts.seen, "kept": report.counts.ok,
    "thresholds": len(report.extra["thresholds"])}))
"""


def dry_run(work: Path, rows: int, runs: int) -> dict[str, Any]:
    """``--dry-run`` over `rows` rows, in a process of its own each time, imports included."""
    data = work / f"rows-{rows}"
    if not data.exists():
        write_tables(data, rows)
    where = "aesthetic_v2 >= 5.5 AND punsafe < 0.1 AND original_width >= 512 AND pwatermark < 0.5"
    found = []
    for _ in range(runs):
        out = subprocess.run(
            [sys.executable, "-c", DRY_RUN, str(data), where],
            check=True,
            capture_output=True,
            text=True,
        )
        found.append(json.loads(out.stdout))
    return {**found[0], "seconds": median(f["seconds"] for f in found), "runs": runs,
            "peak_mib": max(f["peak_mib"] for f in found)}  # fmt: skip


def median(values: Any) -> float:
    """Median, three digits."""
    return round(statistics.median(values), 3)


def main() -> None:
    """Run the parts asked for and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="dry_run,export,view,semantic")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the dry run")
    parser.add_argument("--samples", type=int, default=20_000, help="pictures of export and view")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="vectors of semantic dedup")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="folder for the data, kept")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="laionkit-bench-"))
    sizes = {"dry_run": options.rows, "export": options.samples, "view": options.samples,
             "semantic": options.vectors}  # fmt: skip
    known: dict[str, Any] = {}
    if options.out and options.out.exists():
        known = json.loads(options.out.read_text())["parts"]
    try:
        for part in options.parts.split(","):
            known[part] = PARTS[part](work, sizes[part], options.runs)
            print(part, json.dumps(known[part]))
    finally:
        if options.work is None:
            shutil.rmtree(work)
    if options.out:
        options.out.write_text(json.dumps({**machine(), "parts": known}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "command": "python benchmarks/subset.py --out benchmarks/results/subset.json",
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


PARTS: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {"dry_run": dry_run}

if __name__ == "__main__":
    main()
