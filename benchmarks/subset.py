"""How fast subsets are made and loaded, each beside what a user would do without laionkit.

    python -m benchmarks.subset --out benchmarks/results/subset.json
    python -m benchmarks.subset --parts dry_run --rows 10000000 --work FOLDER

Peers run in the same environment on the same samples, alternating with ours; a ratio is of
medians. Everything is drawn here, nothing is downloaded. `semantic` draws vectors with the
spread of the real ones that LAIONKIT_TEST_DATA holds.
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
from laionkit.core.places import note_places
from laionkit.core.progress import Counts
from laionkit.core.records import FileEntry, ShardRecord, StageMade, StageRecords
from laionkit.core.schemas import FETCHED_COLUMNS
from laionkit.core.shards import ShardWriter
from laionkit.core.tars import IMAGES_SCHEMA

SHARD = 10_000
# It takes half a second a thousand.
MOST_FOR_WEBDATASET = 20_000
DATA = Path(os.environ.get("LAIONKIT_TEST_DATA", "../shared/data"))


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


# ru_maxrss would count what the parent held when it forked.
PEAK = """
def peak_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM"))
"""
SUBSET = (
    PEAK
    + """
import json, sys, time
started = time.monotonic()
from laionkit.stages.subset import SubsetConfig, subset
report = subset(sys.argv[1], SubsetConfig(name="best", **json.loads(sys.argv[2])))
print(json.dumps({"seconds": round(time.monotonic() - started, 2), "peak_mib": peak_mib(),
    "cpu_s": round(time.process_time(), 2),
    "rows": report.counts.seen, "kept": report.counts.ok,
    "thresholds": len(report.extra.get("thresholds", []))}))
"""
)
WHERE = "aesthetic_v2 >= 5.5 AND punsafe < 0.1 AND original_width >= 512 AND pwatermark < 0.5"


def rows_data(work: Path, rows: int) -> Path:
    """The dataset of dry_run and lists, drawn once."""
    data = work / f"rows-{rows}"
    if not data.exists():
        write_tables(data, rows)
    return data


def alone(data: Path, **settings: Any) -> dict[str, Any]:
    """What one subset takes in a process of its own, imports included."""
    command = [sys.executable, "-c", SUBSET, str(data), json.dumps(settings)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(out.stdout)
    return found


def dry_run(work: Path, rows: int, runs: int) -> dict[str, Any]:
    """``--dry-run`` over `rows` rows, in a process of its own each time, imports included."""
    data = rows_data(work, rows)
    found = [alone(data, dry_run=True, where=WHERE) for _ in range(runs)]
    return {**found[0], "seconds": median(f["seconds"] for f in found), "runs": runs,
            "cpu_s": median(f["cpu_s"] for f in found),
            "peak_mib": max(f["peak_mib"] for f in found)}  # fmt: skip


def lists(work: Path, rows: int, runs: int) -> dict[str, Any]:
    """``--as parquet`` over `rows` rows: all kept, in order and shuffled, few and hardly any.

    Each once, whatever `runs` says: it is memory that counts.
    """
    data = rows_data(work, rows)
    ways: dict[str, dict[str, Any]] = {
        "all": {},
        "all_shuffled": {"shuffle_seed": 1},
        "few": {"where": WHERE},
        "hardly_any": {"where": "aesthetic_v2 >= 8"},
    }
    found = {}
    for name, settings in ways.items():
        clear(data, work)
        found[name] = alone(data, as_="parquet", **settings)
    clear(data, work)
    return found


def draw_jpeg(rng: np.random.Generator) -> bytes:
    """Blurred noise at 256 px: as many bytes as a photograph."""
    import cv2

    small = rng.integers(0, 256, (64, 64, 3), np.uint8)
    image_HWC = cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
    noise_HWC = rng.normal(0, 12, image_HWC.shape)
    image_HWC = np.clip(image_HWC + noise_HWC, 0, 255).astype(np.uint8)
    quality = int(rng.integers(70, 93))
    return cv2.imencode(".jpg", image_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def write_pictures(path: Path, samples: int) -> None:
    """A fetched and scored dataset of real tars: JPEGs of 256 px and 20 to 40 kB."""
    folder, rng = Folder(path), np.random.default_rng(1)
    size = 1000
    drawn = [draw_jpeg(rng) for _ in range(500)]
    scheme = KeyScheme(size, 5)
    for shard in range(-(-samples // size)):
        name = f"{shard:05d}"
        table = rows_of(shard, size, rng).set_column(0, "key", scheme.keys(shard, size))
        rows, noted = table.to_pylist(), []
        with folder.create(f"shards/{name}.tar") as file, ShardWriter(file) as tar:
            for row in rows:
                image = drawn[int(rng.integers(len(drawn)))]
                line = json.dumps(row).encode()
                text = row["caption"].encode()
                offset = tar.add(row["key"], {"jpg": image, "json": line, "txt": text})
                noted.append((row["key"], "jpg", offset, len(image)))
        written = Written(f"shards/{name}.tar", file.size, file.digest.hexdigest())
        parquet = folder.write_table(f"shards/{name}.parquet", table)
        places = pa.table(list(map(list, zip(*noted, strict=True))), schema=IMAGES_SCHEMA)
        files = {"tar": written, "places": note_places(folder, name, places), "table": parquet}
        record(folder, "fetch", name, files, size)
        values = pa.array(rng.permutation(size).astype(np.float32))
        scores = folder.write_table(
            f"scores/aesthetic_v2/{name}.parquet", pa.table({"key": table["key"], "value": values})
        )
        record(folder, score_stage("aesthetic_v2"), name, {"scores": scores}, size)


def pictures(work: Path, samples: int) -> Path:
    """The dataset of export and view, drawn once."""
    data = work / f"pictures-{samples}"
    if not data.exists():
        write_pictures(data, samples)
    return data


def export(work: Path, samples: int, runs: int) -> dict[str, Any]:
    """Shards with a global shuffle and new JSON, beside webdataset's ShardWriter and a copy.

    webdataset's loop reads the same tars, adds the same score to the JSON and writes; it neither
    hashes nor shuffles over more than a buffer.
    """
    data = pictures(work, samples)
    tars = sorted((data / "shards").glob("*.tar"))
    megabytes = sum(tar.stat().st_size for tar in tars) / 1e6
    ways: dict[str, Callable[[], None]] = {
        "laionkit": lambda: make_subset(data, "", shuffle_seed=1),
        "laionkit_quarter_kept": lambda: make_subset(data, "aesthetic_v2 < 250", shuffle_seed=1),
        "plain_copy": lambda: plain_copy(tars, work / "copy"),
        "webdataset_shardwriter": lambda: webdataset_export(tars, data, work / "wds"),
    }
    if samples > MOST_FOR_WEBDATASET:
        del ways["webdataset_shardwriter"]
    clear(data, work)
    make_subset(data, "")  # imports, and the tars into memory, for all
    walls, cpus = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            clear(data, work)
            os.sync()  # nobody pays for what the one before left to be deleted and written
            began = time.process_time()
            walls[name].append(timed(way))
            cpus[name].append(time.process_time() - began)
    wall = {name: median(seconds) for name, seconds in walls.items()}
    cpu = {name: median(seconds) for name, seconds in cpus.items()}
    return {
        "samples": samples,
        "megabytes": round(megabytes),
        "wall_s": wall,
        "cpu_s": cpu,
        **({"times_webdataset": round(wall["webdataset_shardwriter"] / wall["laionkit"], 2)}
           if "webdataset_shardwriter" in wall else {}),
        "share_of_copy_speed": round(wall["plain_copy"] / wall["laionkit"], 3),
        "share_of_copy_speed_by_cpu": round(cpu["plain_copy"] / cpu["laionkit"], 3),
        "quarter_costs": round(wall["laionkit_quarter_kept"] / wall["laionkit"], 2),
        "quarter_costs_by_cpu": round(cpu["laionkit_quarter_kept"] / cpu["laionkit"], 2),
        "runs": runs,
    }  # fmt: skip


def clear(data: Path, work: Path) -> None:
    """Delete what was exported before."""
    for place in ("subsets", ".laionkit/subset"):
        shutil.rmtree(data / place, ignore_errors=True)
    for place in ("copy", "wds"):
        shutil.rmtree(work / place, ignore_errors=True)


def export_large(work: Path, samples: int, runs: int) -> dict[str, Any]:
    """The same with four times the samples, where what does not grow with them weighs less."""
    return export(work, 4 * samples, runs)


def make_subset(data: Path, where: str, **settings: Any) -> None:
    """Write a subset afresh."""
    from laionkit.stages.subset import SubsetConfig, subset

    subset(str(data), SubsetConfig(name="bench", where=where, samples_per_shard=1000, **settings))


def webdataset_export(tars: list[Path], data: Path, out: Path) -> None:
    """What a user writes today: read, add the score to the JSON, shuffle a buffer, write."""
    import pyarrow.parquet as pq
    import webdataset

    out.mkdir(parents=True)
    files = sorted((data / "scores/aesthetic_v2").glob("*.parquet"))
    tables = [pq.read_table(file) for file in files]
    score = {
        key: value
        for table in tables
        for key, value in zip(*(column.to_pylist() for column in table.columns), strict=True)
    }
    reader = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False).shuffle(1000)
    with webdataset.ShardWriter(f"{out}/%05d.tar", maxcount=1000, verbose=0) as writer:
        for sample in reader:
            row = json.loads(sample["json"])
            row["aesthetic_v2"] = score[sample["__key__"]]
            writer.write(
                {
                    "__key__": sample["__key__"],
                    "jpg": sample["jpg"],
                    "txt": sample["txt"],
                    "json": json.dumps(row).encode(),
                }
            )


def plain_copy(tars: list[Path], out: Path) -> None:
    """Copy the tars."""
    out.mkdir(parents=True)
    for tar in tars:
        with tar.open("rb") as source, (out / tar.name).open("wb") as target:
            while block := source.read(1 << 20):
                target.write(block)


def view(work: Path, samples: int, runs: int) -> dict[str, Any]:
    """Reading a view of half the samples, beside plain webdataset over the same shards.

    Once as bytes, once decoded to arrays; both in one process, as one loader worker would.
    """
    import webdataset

    from laionkit.stages.subset.loading import load

    data = pictures(work, samples)
    tars = [str(tar) for tar in sorted((data / "shards").glob("*.tar"))]
    clear(data, work)
    make_subset(data, "aesthetic_v2 < 500", as_="view", shuffle_seed=1)
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        for kind in ("bytes", "decoded"):
            ours = load(str(data), "bench", shuffle=1000)
            theirs = webdataset.WebDataset(tars, shardshuffle=False).shuffle(1000)
            for who, stream in (("view", ours), ("webdataset", theirs)):
                shown = stream if kind == "bytes" else stream.decode("rgb8")
                found.setdefault(f"{who}_{kind}", []).append(rate(shown))
    speed = {name: round(median(rates)) for name, rates in found.items()}
    return {
        "samples": samples,
        "images_per_s": speed,
        "ratio_bytes": round(speed["view_bytes"] / speed["webdataset_bytes"], 2),
        "ratio_decoded": round(speed["view_decoded"] / speed["webdataset_decoded"], 2),
        "runs": runs,
    }


def rate(samples: Any) -> float:
    """Samples a second."""
    started = time.perf_counter()
    count = sum(1 for _ in samples)
    return count / (time.perf_counter() - started)


SEMANTIC = (
    PEAK
    + """
import json, os, sys, time
import faiss, numpy as np
from laionkit.backends import near, near_cells
who, path, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
emb_ND = np.load(path, mmap_mode="r")
def read(which):
    x_ND = np.asarray(emb_ND[which], np.float32)
    faiss.normalize_L2(x_ND)
    return x_ND
clusters = max(2, round(rows**0.5 / 2))
cpu = 0.0
if who != "peer":
    started, reach = time.perf_counter(), 1 if who == "exact" else near.REACH
    found = [p for p in near.near_pairs(read, rows, 0.95, reach) if len(p)]
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4])
    np.save(sys.argv[4], np.concatenate(found))
else:
    _, own_N = near_cells.cluster(read, rows, clusters, 0)
    np.save(sys.argv[4], own_N)
    seconds = 0.0
    for number in range(clusters):
        own_ND = read(np.flatnonzero(own_N == number))
        started, began = time.perf_counter(), time.process_time()
        if len(own_ND):
            faiss.knn(own_ND, own_ND, 16, metric=faiss.METRIC_INNER_PRODUCT)
        seconds += time.perf_counter() - started
        cpu += time.process_time() - began
print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_mib": peak_mib()}))
"""
)


def write_vectors(path: Path, count: int) -> None:
    """CLIP-like vectors (see benchmarks/search.py) whose last thousandth are near-duplicates.

    A copy is its original moved, at a cosine of 0.955 to 0.99, as pictures differ from one
    another: along the difference of two others, so that it crosses borders as readily.
    """
    from benchmarks.search import Generator

    generator, rng = Generator(count, DATA), np.random.default_rng(2)
    planted = count // 1000
    out = np.lib.format.open_memmap(path, "w+", np.float16, (count, 512))
    for start in range(0, count, 65_536):
        out[start : start + 65_536] = generator.images(min(65_536, count - start), start)
    one_ND = out[:planted].astype(np.float64)
    others = rng.choice(count, (2, planted))
    move_ND = out[others[0]].astype(np.float64) - out[others[1]]
    move_ND -= np.einsum("nd,nd->n", move_ND, one_ND)[:, None] * one_ND
    move_ND /= np.linalg.norm(move_ND, axis=1, keepdims=True)
    cosine_N1 = rng.uniform(0.955, 0.99, (planted, 1))
    out[-planted:] = cosine_N1 * one_ND + np.sqrt(1 - cosine_N1**2) * move_ND
    out.flush()


def near_pairs_of(path: Path) -> set[tuple[int, int]]:
    """Pairs of rows of an .npy file, the lower first."""
    return {(int(a), int(b)) for a, b in np.sort(np.load(path), axis=1)}


def semantic(work: Path, vectors: int, runs: int) -> dict[str, Any]:
    """Every near pair of `vectors` x 512, beside one exact k-NN pass of faiss per cluster.

    Each in a process of its own with all threads. Ours counts all it does, k-means and reading
    among it, over as many clusters, and the CPU of all its processes; of the peer only the k-NN
    calls count. `exact` is ours so that no pair can be missed (`--dedup-exact`).
    """
    path = work / f"vectors-{vectors}.npy"
    if not path.exists():
        write_vectors(path, vectors)
    told: dict[str, list[dict[str, float]]] = {"ours": [], "peer": [], "exact": []}
    outs = {who: work / f"semantic-{who}.npy" for who in told}
    for _ in range(runs):
        for who, results in told.items():
            command = [sys.executable, "-c", SEMANTIC, who, str(path), str(vectors), str(outs[who])]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(out.stdout))
    planted, own_N = vectors // 1000, np.load(outs["peer"])
    pairs = {who: near_pairs_of(outs[who]) for who in ("ours", "exact")}
    copies = [(row, vectors - planted + row) for row in range(planted)]
    seconds, cpu = (
        {who: median(r[what] for r in results) for who, results in told.items()}
        for what in ("seconds", "cpu_s")
    )
    return {
        "vectors": vectors,
        "laionkit_s": seconds["ours"],
        "laionkit_exact_s": seconds["exact"],
        "laionkit_peak_mib": max(r["peak_mib"] for r in told["ours"]),
        "faiss_knn_per_cluster_s": seconds["peer"],
        "times_faiss": round(seconds["ours"] / seconds["peer"], 2),
        "exact_times_faiss": round(seconds["exact"] / seconds["peer"], 2),
        "laionkit_cpu_s": cpu["ours"],
        "faiss_knn_per_cluster_cpu_s": cpu["peer"],
        "times_faiss_by_cpu": round(cpu["ours"] / cpu["peer"], 2),
        "exact_times_faiss_by_cpu": round(cpu["exact"] / cpu["peer"], 2),
        "pairs": len(pairs["ours"]),
        "pairs_exact": len(pairs["exact"]),
        "pairs_across_a_border": sum(int(own_N[a] != own_N[b]) for a, b in pairs["exact"]),
        "planted_above_threshold": planted,
        "planted_found": len(pairs["ours"].intersection(copies)),
        "planted_across_a_border": sum(int(own_N[a] != own_N[b]) for a, b in copies),
        "runs": runs,
    }


def timed(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(values: Any) -> float:
    """Median, three digits."""
    return round(statistics.median(values), 3)


def main() -> None:
    """Run the parts asked for and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="dry_run,export,view,semantic")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of dry_run and lists")
    parser.add_argument("--samples", type=int, default=20_000, help="pictures of export and view")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="vectors of semantic dedup")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="folder for the data, kept")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="laionkit-bench-"))
    sizes = {"dry_run": options.rows, "lists": options.rows, "view": options.samples,
             "export": options.samples, "export_large": options.samples,
             "semantic": options.vectors}  # fmt: skip
    known: dict[str, Any] = {}
    if options.out and options.out.exists():
        known = json.loads(options.out.read_text())["parts"]
    try:
        for part in options.parts.split(","):
            known[part] = PARTS[part](work, sizes[part], options.runs)
            print(part, json.dumps(known[part]), flush=True)
            if options.out:
                stated = {**machine(), "parts": known}
                options.out.write_text(json.dumps(stated, indent=1) + "\n")
    finally:
        if options.work is None:
            shutil.rmtree(work)


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "command": "python -m benchmarks.subset --out benchmarks/results/subset.json",
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


PARTS: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "dry_run": dry_run,
    "lists": lists,
    "export": export,
    "export_large": export_large,
    "view": view,
    "semantic": semantic,
}

if __name__ == "__main__":
    main()
