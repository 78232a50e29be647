"""How fast and how right filtered search is, beside autofaiss and plain faiss.

    python benchmarks/search.py --rows 1000000 --place /tmp/bench --out results.json

It goes in steps (``--steps``) that keep what they made in ``--place``, so that each can be run when
the machine is free for it: data, ours, ivf, autofaiss (the builds), cold, prepare (filters, truth
and the peer's best nprobe of every cell), time, recall, agree (what the index says of its recall,
beside what other queries find), budget (a build in 300 MiB).

The vectors are generated, a few numbers of theirs fitted to real ones (LAIONKIT_TEST_DATA: 400
Flickr8k pictures, 1,203 texts of Detic, both CLIP ViT-B/32): the two means (the modality gap), the
spectra, the spread of image-image and text-image cosines. Each query has filters of its own, that
keep 100, 50, 10, 1 and 0.1 % of the rows by a column independent of the query's scores, correlated
with them (0.7) or anti-correlated.

Both sides are given a query's vector and a filter they have seen before, and answer rows and
scores: each is asked twice with that filter and another query before it is timed. Peers run in an
environment of their own (``--peer``, made on first use):

- autofaiss at its defaults, over-fetching 3,000 and filtering afterwards, as clip-retrieval does;
- plain faiss, IVF of float16 vectors with a bitmap, at the least nprobe that reaches a recall@10
  of 0.95 in that very cell, found by trying: nobody has that number in real life.

Wall and CPU time are both medians over queries; where cores are shared, the latter is steadier.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
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
from laionkit.search.evaluation import Queries, Ranking, evaluate, exact_scores
from laionkit.search.keep import Keep, prepare
from laionkit.search.searcher import Searcher
from laionkit.search.tuning import CELLS, simulated_filters
from laionkit.stages.index import IndexConfig, index

DIM, K, SHARD = 512, 10, 50_000
STEPS = ("data", "ours", "ivf", "autofaiss", "cold", "prepare", "time", "recall", "agree", "budget")
SMALL_MIB = 300
WARMING = 500
RECALL_BATCH = 500  # queries whose scores are held at a time: 2 GB of a million rows
PEERS = ["autofaiss==2.18.0", "faiss-cpu==1.15.1", "numpy<2", "pyarrow<20"]
PEER_BUILD = """
import json, resource, sys, time
import numpy as np, faiss
folder, what = sys.argv[1:]
started = time.perf_counter()
if what == "autofaiss":
    from autofaiss import build_index
    build_index(folder + "/flat", index_path=folder + "/autofaiss.index",
                index_infos_path=folder + "/autofaiss.json", metric_type="ip", verbose=40)
else:
    x = np.load(folder + "/flat/all.npy", mmap_mode="r")
    lists = max(16, round(2 * len(x) ** 0.5 / 16) * 16)
    index = faiss.index_factory(x.shape[1], f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    sample = np.sort(np.random.default_rng(0).choice(len(x), 40 * lists, replace=False))
    index.train(x[sample].astype(np.float32))
    for i in range(0, len(x), 65536):
        index.add(x[i:i + 65536].astype(np.float32))
    faiss.write_index(index, folder + "/ivf.index")
seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
kind = type(faiss.read_index(folder + "/" + what + ".index", faiss.IO_FLAG_MMAP)).__name__
print(json.dumps({"s": round(seconds, 1), "cpu_s": round(used.ru_utime + used.ru_stime, 1),
                  "peak_mib": round(used.ru_maxrss / 1024), "kind": kind}))
"""
PEER_SERVE = """
import json, os, sys, time
import numpy as np, faiss
folder = sys.argv[1]
ivf = faiss.read_index(folder + "/ivf.index")
auto = None
if os.path.exists(folder + "/autofaiss.index"):
    auto = faiss.read_index(folder + "/autofaiss.index")
def post_filter(query, keep, nprobe):
    _, found = auto.search(query[None], 3000)
    return [int(r) for r in found[0] if r >= 0 and keep[r >> 3] >> (r & 7) & 1][:10]
def bitmap(query, keep, nprobe):
    params = faiss.SearchParametersIVF(nprobe=nprobe, sel=faiss.IDSelectorBitmap(keep))
    return [int(r) for r in ivf.search(query[None], 10, params=params)[1][0] if r >= 0]
def timed(ask, queries, keeps, nprobe):
    times, cpu, answers = [], [], []
    for number, (query, keep) in enumerate(zip(queries, keeps)):
        for _ in range(2): ask(queries[number - 1], keep, nprobe)
        started, worked = time.perf_counter(), time.process_time()
        answers.append(ask(query, keep, nprobe))
        times.append(1e3 * (time.perf_counter() - started))
        cpu.append(1e3 * (time.process_time() - worked))
    return {"ms": times, "cpu_ms": cpu, "answers": answers}
def recall(answers, truth):
    return np.mean([len(set(a) & set(t)) / max(1, len(t)) for a, t in zip(answers, truth)])
def best_nprobe(queries, keeps, truth):
    nprobe = 1
    while nprobe < ivf.nlist:
        found = [bitmap(q, k, nprobe) for q, k in zip(queries, keeps)]
        if recall(found, truth) >= 0.95: break
        nprobe = min(ivf.nlist, max(nprobe + 1, int(nprobe * 1.25)))
    return nprobe
print("ready", flush=True)
for line in sys.stdin:
    cell = json.loads(line)
    queries, keeps = np.load(folder + "/asked.npy"), np.load(cell["keeps"])
    if "truth" in cell:
        out = best_nprobe(queries, keeps, cell["truth"])
    else:
        ask = {"ivf": bitmap, "autofaiss": post_filter}[cell["side"]]
        out = timed(ask, queries, keeps, cell["nprobe"]) if cell["side"] == "ivf" or auto else None
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
    (place / "flat").mkdir(parents=True)
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


def build_ours(place: Path, memory_mib: int = 2048) -> dict[str, float]:
    """Build in a process of its own, whatever was built before."""
    for old in ("index", ".laionkit/index"):
        shutil.rmtree(place / "dataset" / old, ignore_errors=True)
    for part in place.glob("recall-*.json"):
        part.unlink()
    started = time.perf_counter()
    pid = os.fork()
    if not pid:
        index(str(place / "dataset"), IndexConfig(exact_mib=0, memory_mib=memory_mib))
        os._exit(0)
    _, status, used = os.wait4(pid, 0)
    assert status == 0
    return {
        "s": round(time.perf_counter() - started, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
    }


def build_peer(place: Path, what: str, python: str) -> dict[str, Any]:
    """Build a peer's index in a process of its own."""
    command = [python, "-c", PEER_BUILD, str(place), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.strip().split("\n")[-1]))


def cold_query(place: Path) -> dict[str, float]:
    """Seconds of a whole command that asks with a vector, the least of five."""
    np.save(place / "one.npy", np.load(place / "queries.npy")[0])
    command = [sys.executable, "-m", "laionkit", "query", str(place / "dataset"),
               "--vector", str(place / "one.npy"), "--json"]  # fmt: skip
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return {"least_s": round(min(seconds), 3), "median_s": round(statistics.median(seconds), 3)}


class Peer:
    """The peers' indexes, in a process that answers one side of one cell at a time."""

    def __init__(self, place: Path, python: str) -> None:
        command = [python, "-c", PEER_SERVE, str(place)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout and self._process.stdout.readline() == "ready\n"

    def ask(self, **cell: Any) -> Any:
        """What the peer says of a cell."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(cell) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def file_order(searcher: Searcher) -> NDArray[np.int64]:
    """The row of the flat file that each row of the index is."""
    keys = searcher.segments[0].rows.keys().to_pylist()
    return np.array([int(key[:5]) * SHARD + int(key[5:]) for key in keys])


def filters(
    scores_N: NDArray[np.float32], seed: int
) -> Iterator[tuple[tuple[float, float], NDArray[np.bool_]]]:
    """Every cell's filter of one query."""
    return simulated_filters(scores_N, CELLS, np.random.default_rng((7, seed)))


def cell_file(place: Path, cell: tuple[float, float], side: str) -> Path:
    """Where the filters of a cell are kept, in the order of our rows or of the flat file's."""
    return place / f"keeps-{side}-{cell[0]}-{cell[1]}.npy"


def prepare_cells(place: Path, python: str, count: int) -> None:
    """Filters and truth of every cell for some queries, and plain faiss's best nprobe."""
    searcher = Searcher(place / "dataset")
    order = file_order(searcher)
    back = np.argsort(order)
    queries = np.load(place / "queries.npy")[:count]
    np.save(place / "asked.npy", queries)
    keeps: dict[Any, list[Any]] = {cell: [] for cell in CELLS}
    truth: dict[Any, list[Any]] = {cell: [] for cell in CELLS}
    for start in range(0, count, RECALL_BATCH):
        for number, scores in enumerate(exact_scores(searcher, queries[start:][:RECALL_BATCH])):
            ranking = Ranking(scores)
            for cell, keep in filters(scores, start + number):
                keeps[cell].append(bits.from_mask(keep))
                truth[cell].append(ranking.nearest(keep, K))
    peer, told = Peer(place, python), []
    for cell in CELLS:
        np.save(cell_file(place, cell, "ours"), np.stack(keeps[cell]))
        theirs = [np.unpackbits(k, count=len(order), bitorder="little")[back] for k in keeps[cell]]
        np.save(cell_file(place, cell, "flat"), np.packbits(theirs, axis=1, bitorder="little"))
        flat = [order[rows].tolist() for rows in truth[cell]]
        nprobe = peer.ask(keeps=str(cell_file(place, cell, "flat")), truth=flat)
        told.append({"cell": cell, "truth": flat, "nprobe": nprobe})
        print(cell, nprobe, flush=True)
    peer.close()
    (place / "cells.json").write_text(json.dumps(told))


def time_cells(place: Path, python: str) -> list[dict[str, Any]]:
    """Ours, then the peers, on the same queries and filters, cell by cell."""
    searcher = Searcher(place / "dataset")
    order, queries = file_order(searcher), np.load(place / "asked.npy")
    # The peers read their indexes into memory whole; ours is mapped: other queries touch it first.
    for query in np.load(place / "queries.npy")[-WARMING:]:
        searcher.nearest(query, K, None)
    peer, cells = Peer(place, python), []
    for told in json.loads((place / "cells.json").read_text()):
        selectivity, correlation = told["cell"]
        packed = np.load(cell_file(place, (selectivity, correlation), "ours"))
        keeps = [[Keep(bitmap)] if selectivity < 1 else None for bitmap in packed]
        ours = time_ours(searcher, queries, keeps)
        ours["answers"] = [order[rows].tolist() for rows in ours["answers"]]
        cell = {
            "selectivity": selectivity,
            "correlation": correlation,
            "nprobe": told["nprobe"],
            "exact": float(np.mean(ours["exact"])),
            "ours": summary(ours, told["truth"]),
        }
        for side in ("ivf", "autofaiss"):
            asked = {"keeps": str(cell_file(place, (selectivity, correlation), "flat")),
                     "nprobe": told["nprobe"], "side": side}  # fmt: skip
            theirs = peer.ask(**asked)
            if theirs is not None:
                cell[side] = summary(theirs, told["truth"])
        print(json.dumps(cell), flush=True)
        cells.append(cell)
    peer.close()
    return cells


def time_ours(
    searcher: Searcher, queries_QD: NDArray[np.float32], keeps: list[Any]
) -> dict[str, Any]:
    """Milliseconds and answers of every query, whose filter came twice before with another."""
    found: dict[str, Any] = {"ms": [], "cpu_ms": [], "answers": [], "exact": []}
    for number, (query, keep) in enumerate(zip(queries_QD, keeps, strict=True)):
        prepare(searcher.segments, keep or [None] * len(searcher.segments))
        for _ in range(2):
            searcher.nearest(queries_QD[number - 1], K, keep)
        started, worked = time.perf_counter(), time.process_time()
        hits, plan = searcher.nearest(query, K, keep)
        found["ms"].append(1e3 * (time.perf_counter() - started))
        found["cpu_ms"].append(1e3 * (time.process_time() - worked))
        found["answers"].append(hits.rows)
        found["exact"].append(plan.exact)
    return found


def measure_recall(place: Path, first: int, count: int) -> list[dict[str, Any]]:
    """Recall@10 of our answers to text queries that tuned nothing, in every cell.

    What each batch of queries found is kept: run again, it goes on where it was stopped.
    """
    searcher = Searcher(place / "dataset")
    queries = np.load(place / "queries.npy")[: first + count]
    parts = []
    for start in range(first, len(queries), RECALL_BATCH):
        part = place / f"recall-{start}-{len(queries)}.json"
        if not part.exists():
            part.write_text(json.dumps(recall_batch(searcher, queries, start)))
        parts.append(json.loads(part.read_text()))
        print(part.name, [round(float(np.mean(cell["recalls"])), 4) for cell in parts[-1]],
              flush=True)  # fmt: skip
    found = []
    for number, (selectivity, correlation) in enumerate(CELLS):
        recalls = np.concatenate([part[number]["recalls"] for part in parts])
        exact = np.concatenate([part[number]["exact"] for part in parts])
        found.append({
            "selectivity": selectivity, "correlation": correlation, "queries": len(recalls),
            "recall": round(float(recalls.mean()), 4),
            "low95": round(float(recalls.mean() - 1.96 * recalls.std() / len(recalls) ** 0.5), 4),
            "exact": round(float(exact.mean()), 4),
        })  # fmt: skip
    return found


def recall_batch(
    searcher: Searcher, queries_QD: NDArray[np.float32], start: int
) -> list[dict[str, Any]]:
    """Recall of each query of a batch, and whether it was called exact, a cell after the other."""
    cells: dict[Any, dict[str, Any]] = {cell: {"recalls": [], "exact": []} for cell in CELLS}
    batch = queries_QD[start : start + RECALL_BATCH]
    for number, scores in enumerate(exact_scores(searcher, batch)):
        ranking = Ranking(scores)
        for cell, keep in filters(scores, start + number):
            keeps = [Keep(bits.from_mask(keep))] if cell[0] < 1 else None
            hits, plan = searcher.nearest(batch[number], K, keeps)
            truth = ranking.nearest(keep, K)
            assert len(hits.rows) == len(truth), f"query {start + number} has a short answer"
            cells[cell]["recalls"].append(len(set(hits.rows) & set(truth)) / len(truth))
            cells[cell]["exact"].append(plan.exact)
    return list(cells.values())


def measure_agreement(place: Path, count: int) -> list[dict[str, Any]]:
    """What ``--evaluate`` stores, and what as many other text queries find, cell by cell."""
    index(str(place / "dataset"), IndexConfig(exact_mib=0, evaluate=count))
    stored = json.loads((place / "dataset/index/clip/evaluation.json").read_text())["cells"]
    others = Queries.of_texts(np.load(place / "queries.npy")[-count:])
    again = evaluate(Searcher(place / "dataset"), {"texts": others}, seed=1)
    found = []
    for told, seen in zip((c for c in stored if c["queries"] == "texts"), again, strict=True):
        assert (told["selectivity"], told["correlation"]) == (seen.selectivity, seen.correlation)
        margin = float(np.hypot(told["recall"] - told["low"], seen.recall - seen.low))
        found.append({
            "selectivity": seen.selectivity, "correlation": seen.correlation,
            "stored": told["recall"], "again": seen.recall, "margin95": round(margin, 4),
            "within": abs(told["recall"] - seen.recall) <= margin + 1e-9,
        })  # fmt: skip
    return found


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
    """Run some steps and add what they measure to the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--place", required=True, help="folder that keeps data and indexes")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--queries", type=int, default=200, help="queries that are timed")
    parser.add_argument("--recall-queries", type=int, default=5000)
    parser.add_argument("--data", default=os.environ.get("LAIONKIT_TEST_DATA", "../shared/data"))
    parser.add_argument("--peer", default=str(Path.home() / ".cache/laionkit-bench/search"))
    parser.add_argument("--out", required=True, help="JSON file that results are added to")
    args = parser.parse_args()
    python = peer_python(Path(args.peer))
    place, out = Path(args.place), Path(args.out)
    steps: dict[str, Callable[[], Any]] = {
        "data": lambda: make_data(place, Path(args.data), args.rows),
        "ours": lambda: build_ours(place),
        "ivf": lambda: build_peer(place, "ivf", python),
        "autofaiss": lambda: build_peer(place, "autofaiss", python),
        "cold": lambda: cold_query(place),
        "prepare": lambda: prepare_cells(place, python, args.queries),
        "time": lambda: time_cells(place, python),
        "agree": lambda: measure_agreement(place, args.queries),
        "budget": lambda: build_ours(place, SMALL_MIB),
        "recall": lambda: measure_recall(place, args.queries, args.recall_queries),
    }
    for step in args.steps.split(","):
        found = steps[step]()
        if found is not None:
            add_result(out, f"{args.rows} rows", step, found)


def make_data(place: Path, data: Path, rows: int) -> None:
    """The dataset, its vectors in one file for the peers, and queries that are in none of them."""
    generator = Generator(rows, data)
    write_dataset(place, generator, rows)
    np.save(place / "queries.npy", generator.texts(6000, 10**6))


def add_result(out: Path, rows: str, step: str, found: Any) -> None:
    """Add what a step measured, with its machine, commit and command."""
    results = json.loads(out.read_text()) if out.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True,
                            check=False).stdout.strip()  # fmt: skip
    results.setdefault(rows, {})[step] = {
        "command": " ".join(
            ["benchmarks/search.py", f"--rows {rows.split()[0]}", f"--steps {step}"]
        ),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "load": round(os.getloadavg()[0], 2),
        },
        "found": found,
    }
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({step: found}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
