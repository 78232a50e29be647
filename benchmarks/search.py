"""How fast and how right filtered search is, beside autofaiss and plain faiss.

    python benchmarks/search.py --rows 300000 --out benchmarks/results/search.json

The vectors are generated, a few numbers of theirs fitted to real ones (LAIONKIT_TEST_DATA: 400
Flickr8k pictures, 1,203 texts of Detic, both CLIP ViT-B/32): the two means (the modality gap), the
spectra, the spread of image-image and text-image cosines. Each query has filters of its own, that
keep 100, 50, 10, 1 and 0.1 % of the rows by a column independent of the query's scores, correlated
with them (0.7) or anti-correlated.

Peers run in an environment of their own (``--peer``, made on first use), as a server that answers
one cell at a time, so that sides alternate on the same cells:

- autofaiss at its defaults, over-fetching 3,000 and filtering afterwards, as clip-retrieval does;
- plain faiss, IVF of float16 vectors with a bitmap, at the least nprobe that reaches a recall@10
  of 0.95 in that very cell, found by trying: nobody has that number in real life.

Wall and CPU time are both medians over queries; where cores are shared, the latter is steadier.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.config import StageConfig
from laionkit.core.embeddings import embed_stage
from laionkit.core.files import Folder, Written
from laionkit.core.progress import Counts
from laionkit.core.records import FileEntry, ShardRecord, StageRecords
from laionkit.search import bits
from laionkit.search.keep import Keep, prepare
from laionkit.search.reach import SELECTIVITIES
from laionkit.search.searcher import Searcher
from laionkit.search.tuning import CORRELATIONS, simulated_filter
from laionkit.stages.index import IndexConfig, index

DIM, K, SHARD = 512, 10, 50_000
PEERS = ["autofaiss==2.18.0", "faiss-cpu==1.15.1", "numpy<2", "pyarrow<20"]
PEER = """
import json, sys, time
import numpy as np, faiss
rows = int(sys.argv[2]); folder = sys.argv[1]
def build_autofaiss():
    from autofaiss import build_index
    started = time.perf_counter()
    build_index(folder + "/flat", index_path=folder + "/auto.index",
                index_infos_path=folder + "/auto.json", metric_type="ip", verbose=40)
    return time.perf_counter() - started
def build_ivf():
    x = np.load(folder + "/flat/all.npy", mmap_mode="r")
    lists = max(16, round(2 * rows ** 0.5 / 16) * 16)
    index = faiss.index_factory(x.shape[1], f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    started = time.perf_counter()
    sample = np.sort(np.random.default_rng(0).choice(rows, 40 * lists, replace=False))
    index.train(x[sample].astype(np.float32))
    for i in range(0, rows, 65536):
        index.add(x[i:i + 65536].astype(np.float32))
    faiss.write_index(index, folder + "/ivf.index")
    return time.perf_counter() - started
built = {"autofaiss_s": build_autofaiss(), "ivf_s": build_ivf()}
auto, ivf = faiss.read_index(folder + "/auto.index"), faiss.read_index(folder + "/ivf.index")
built["autofaiss_kind"] = type(auto).__name__
queries = np.load(folder + "/queries.npy")
print(json.dumps(built), flush=True)
def post_filter(query, keep):
    _, found = auto.search(query[None], 3000)
    return [int(r) for r in found[0] if r >= 0 and keep[r >> 3] >> (r & 7) & 1][:10]
def bitmap(query, keep, nprobe):
    params = faiss.SearchParametersIVF(nprobe=nprobe, sel=faiss.IDSelectorBitmap(keep))
    return [int(r) for r in ivf.search(query[None], 10, params=params)[1][0] if r >= 0]
def timed(ask, keeps):
    times, cpu, answers = [], [], []
    for query, keep in zip(queries, keeps):
        started, worked = time.perf_counter(), time.process_time()
        answers.append(ask(query, keep))
        times.append(1e3 * (time.perf_counter() - started))
        cpu.append(1e3 * (time.process_time() - worked))
    return {"ms": times, "cpu_ms": cpu, "answers": answers}
def recall(answers, truth):
    return np.mean([len(set(a) & set(t)) / max(1, len(t)) for a, t in zip(answers, truth)])
for line in sys.stdin:
    cell = json.loads(line)
    keeps, truth = np.load(cell["keeps"]), cell["truth"]
    nprobe = 1
    while nprobe < ivf.nlist:
        if recall([bitmap(q, k, nprobe) for q, k in zip(queries, keeps)], truth) >= 0.95: break
        nprobe = min(ivf.nlist, max(nprobe + 1, int(nprobe * 1.5)))
    out = {"nprobe": nprobe, "ivf": timed(lambda q, k: bitmap(q, k, nprobe), keeps),
           "autofaiss": timed(post_filter, keeps)}
    print(json.dumps(out), flush=True)
"""


class Generator:
    """Vectors like CLIP's: two cones, clusters in clusters, texts that lean to a cluster."""

    def __init__(self, rows: int, data: Path, seed: int = 0) -> None:
        images = unit(np.load(data / "clip/flickr8k-vitb32-rows-0-399/image_embs_fp16.npy")
                      .reshape(-1, DIM))  # fmt: skip
        texts = unit(np.load(data / "clip/detic-text-vectors-vitb32/lvis_v1_clip_a+cname.npy"))
        self.image_mean, self.text_mean = images.mean(0), texts.mean(0)
        variance, basis = spectrum(images - self.image_mean)
        self.text_root = np.sqrt(spectrum(texts - self.text_mean)[0])[:, None] * \
            spectrum(texts - self.text_mean)[1]  # fmt: skip
        # A third of the variance is within clusters, and falls faster: local spreads are flat.
        noise = variance**1.5
        noise = np.minimum(noise * 0.34 * variance.sum() / noise.sum(), 0.8 * variance)
        self.noise_root = np.sqrt(noise)[:, None] * basis
        rng = np.random.default_rng(seed)
        count = max(50, rows // 100)
        groups = rng.standard_normal((max(20, count // 40), DIM))
        latent = 0.67 * groups[rng.integers(len(groups), size=count)]
        latent += 0.742 * rng.standard_normal((count, DIM))
        self.centres = (latent @ (np.sqrt(variance - noise)[:, None] * basis)).astype(np.float32)
        self.said = unit(latent @ (variance[:, None] ** 0.25 * basis)).astype(np.float32)
        weight = np.arange(1, count + 1) ** -0.6
        self.weight = weight / weight.sum()

    def images(self, count: int, seed: int) -> NDArray[np.float16]:
        """Unit vectors of pictures."""
        rng = np.random.default_rng((seed, 1))
        noise = rng.standard_normal((count, DIM), np.float32) @ self.noise_root.astype(np.float32)
        picked = rng.choice(len(self.centres), count, p=self.weight)
        return unit(self.image_mean + self.centres[picked] + noise).astype(np.float16)

    def texts(self, count: int, seed: int) -> NDArray[np.float32]:
        """Unit vectors of texts."""
        rng = np.random.default_rng((seed, 2))
        noise = rng.standard_normal((count, DIM)) @ self.text_root
        picked = rng.choice(len(self.said), count, p=self.weight)
        return unit(self.text_mean + 0.13 * self.said[picked] + 0.93 * noise).astype(np.float32)


def unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Scale rows to length 1."""
    wide = np.asarray(rows, np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def spectrum(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances along a whole basis; directions that so few rows cannot show get a small one."""
    _, values, basis = np.linalg.svd(centred, full_matrices=True)
    variance = np.zeros(DIM)
    variance[: len(values)] = values**2 / (len(centred) - 1)
    return np.maximum(variance, variance[min(len(values), 300)] / 2), basis


def write_dataset(place: Path, generator: Generator, rows: int) -> None:
    """Embeddings of images and captions, shard by shard, and all images in one file for peers."""
    folder = Folder(place / "dataset")
    records = StageRecords(folder, embed_stage("clip"))
    records.begin(StageConfig(), facts={"dim": DIM, "backbone": "generated"})
    (place / "flat").mkdir()
    flat = np.lib.format.open_memmap(place / "flat/all.npy", "w+", np.float16, (rows, DIM))
    for number, start in enumerate(range(0, rows, SHARD)):
        size = min(SHARD, rows - start)
        flat[start : start + size] = generator.images(size, number)
        base = f"embeddings/clip/{{0}}/{{0}}_{number:05d}.npy"
        files = {}
        texts = generator.texts(2000, number).astype(np.float16)
        for role, array in (("img_emb", flat[start : start + size]), ("text_emb", texts)):
            with folder.create(base.format(role)) as file:
                np.save(file, array)
            files[role] = Written(base.format(role), file.size, file.digest.hexdigest())
        keys = [f"{number:05d}{row:05d}" for row in range(size)]
        table = pa.table({"image_path": keys, "caption": keys})
        path = f"embeddings/clip/metadata/metadata_{number:05d}.parquet"
        files["metadata"] = folder.write_table(path, table)
        entries = {role: FileEntry.of(written) for role, written in files.items()}
        counts = Counts.of(size, {})
        records.commit(
            ShardRecord(shard=f"{number:05d}", fingerprint="", counts=counts, files=entries)
        )


def build_ours(place: Path, exact_mib: int) -> tuple[float, float]:
    """Seconds and peak MiB of our build, in a process of its own."""
    started = time.perf_counter()
    pid = os.fork()
    if not pid:
        index(str(place / "dataset"), IndexConfig(exact_mib=exact_mib))
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def run_cell(
    searcher: Searcher, peer: Any, place: Path, selectivity: float, correlation: float,
    queries_QD: NDArray[np.float32], scores_QN: NDArray[np.float32], order: NDArray[np.int64],
) -> dict[str, Any]:  # fmt: skip
    """One cell: ours, then the peers, on the same queries and filters."""
    rng = np.random.default_rng(7)
    keeps, truth = [], []
    for scores in scores_QN:
        keep = np.ones(len(scores), bool)
        if selectivity < 1:
            keep = simulated_filter(scores, selectivity, correlation, rng)
        rows = np.flatnonzero(keep)
        truth.append(rows[np.argsort(-scores[rows], kind="stable")[:K]].tolist())
        keeps.append(keep)
    np.save(place / "keeps.npy", np.stack([bits.from_mask(keep) for keep in keeps]))
    ours: dict[str, Any] = {"ms": [], "cpu_ms": [], "answers": [], "exact": []}
    for query, keep in zip(queries_QD, keeps, strict=True):
        bitmap = [Keep(bits.from_mask(keep[order]))] if selectivity < 1 else None
        prepare(searcher.segments, bitmap or [None])
        started, worked = time.perf_counter(), time.process_time()
        found, plan = searcher.nearest(query, K, bitmap)
        ours["ms"].append(1e3 * (time.perf_counter() - started))
        ours["cpu_ms"].append(1e3 * (time.process_time() - worked))
        ours["answers"].append(order[found.rows].tolist())
        ours["exact"].append(plan.exact)
    peer.stdin.write(json.dumps({"keeps": str(place / "keeps.npy"), "truth": truth}) + "\n")
    peer.stdin.flush()
    theirs = json.loads(peer.stdout.readline())
    cell = {"selectivity": selectivity, "correlation": correlation, "nprobe": theirs["nprobe"],
            "exact": float(np.mean(ours["exact"]))}  # fmt: skip
    for name, side in (("ours", ours), ("ivf", theirs["ivf"]), ("autofaiss", theirs["autofaiss"])):
        cell[name] = summary(side, truth)
    print(json.dumps(cell), flush=True)
    return cell


def summary(side: dict[str, Any], truth: list[list[int]]) -> dict[str, float]:
    """Recall with its lower 95 % bound, the share of short answers, median wall and CPU time."""
    pairs = list(zip(side["answers"], truth, strict=True))
    recalls = np.array([len(set(a) & set(t)) / max(1, len(t)) for a, t in pairs])
    return {
        "recall": round(float(recalls.mean()), 4),
        "low95": round(float(recalls.mean() - 1.96 * recalls.std() / len(recalls) ** 0.5), 4),
        "short": round(float(np.mean([len(a) < len(t) for a, t in pairs])), 4),
        "p50_ms": round(statistics.median(side["ms"]), 3),
        "p50_cpu_ms": round(statistics.median(side["cpu_ms"]), 3),
    }


def peer_python(folder: Path) -> str:
    """The peers' environment, made on first use."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS], check=True)
    return str(python)


def main() -> None:
    """Run the benchmark and print, or write, its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--exact-mib", type=int, default=IndexConfig().exact_mib)
    parser.add_argument("--data", default=os.environ.get("LAIONKIT_TEST_DATA", "../shared/data"))
    parser.add_argument("--peer", default=str(Path.home() / ".cache/laionkit-bench/search"))
    parser.add_argument("--out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="laionkit-bench-") as name:
        result = measure(Path(name), args)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


def measure(place: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Make the data, build every index, run every cell."""
    generator = Generator(args.rows, Path(args.data))
    write_dataset(place, generator, args.rows)
    queries = generator.texts(args.queries, 10**6)
    np.save(place / "queries.npy", queries)
    seconds, peak_mib = build_ours(place, args.exact_mib)
    started = time.perf_counter()
    searcher = Searcher(place / "dataset")
    searcher.nearest(queries[0], K)
    cold_ms = 1e3 * (time.perf_counter() - started)
    keys = searcher.segments[0].rows.keys().to_pylist()
    order = np.array([int(key[:5]) * SHARD + int(key[5:]) for key in keys])
    flat = np.load(place / "flat/all.npy", mmap_mode="r")
    blocks = (unit(flat[i : i + SHARD]).astype(np.float32) for i in range(0, args.rows, SHARD))
    scores = np.concatenate([queries @ block.T for block in blocks], 1)
    command = [peer_python(Path(args.peer)), "-c", PEER, str(place), str(args.rows)]
    peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.DEVNULL)  # fmt: skip
    assert peer.stdin and peer.stdout
    while not (line := peer.stdout.readline()).startswith("{"):
        assert line or peer.poll() is None, "the peer died"
    built = {**json.loads(line), "ours_s": round(seconds, 1), "ours_peak_mib": round(peak_mib)}
    print(json.dumps(built), flush=True)
    cells = [
        run_cell(searcher, peer, place, selectivity, correlation, queries, scores, order)
        for selectivity in SELECTIVITIES
        for correlation in (CORRELATIONS if selectivity < 1 else (0.0,))
    ]
    peer.stdin.close()
    peer.wait()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True,
                            check=False).stdout.strip()  # fmt: skip
    return {
        "command": " ".join(
            [
                "benchmarks/search.py",
                f"--rows {args.rows}",
                f"--queries {args.queries}",
                f"--exact-mib {args.exact_mib}",
            ]
        ),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "load": os.getloadavg()[0],
        },
        "rows": args.rows,
        "dim": DIM,
        "queries": args.queries,
        "peers": PEERS,
        "build": built,
        "cold_vector_query_ms": round(cold_ms, 1),
        "cells": cells,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


if __name__ == "__main__":
    sys.exit(main())
