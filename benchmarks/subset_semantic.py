"""Semantic dedup beside faiss on a sample of clusters, by CPU: for machines that are never idle.

    OMP_NUM_THREADS=1 python -m benchmarks.subset_semantic --work FOLDER --vectors 1000000

Every 50th cluster is compared with all after it, and searched by one exact k-NN pass of faiss, in
turns; both are scaled to all clusters. Ours counts the sketches and the clusters made, whole.
Planted pairs are checked against the two looks that a pair must pass. `benchmarks.subset --parts
semantic` runs all of it, and counts the planted pairs that are found.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from benchmarks.subset import write_vectors
from laionkit.backends import near
from laionkit.backends.near_cells import Cells, Float32, Int64, ReadRows, Sketch

STEP = 50


def main() -> None:
    """Print the seconds of both, scaled to all clusters, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the vectors, kept")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    path, rows = options.work / f"vectors-{options.vectors}.npy", options.vectors
    if not path.exists():
        write_vectors(path, rows)
    emb_ND = np.load(path, mmap_mode="r")

    def read(which: Int64) -> Float32:
        x_ND = np.asarray(emb_ND[which], np.float32)
        faiss.normalize_L2(x_ND)
        return x_ND

    clusters = max(2, round(rows**0.5 / 2))
    picked = range(STEP // 4, clusters, STEP)
    began = time.process_time()
    comparer, sketch = near._Comparer(read, 0.95), Sketch(read, rows, 0)
    with Cells.sorted(sketch, read, rows, clusters, 0) as cells:
        ready_s = time.process_time() - began
        size_K = np.array([len(cells.read(k)[0]) for k in range(clusters)], np.float64)

        def ours() -> None:
            for one in picked:
                for _ in near._pairs_from(one, cells, comparer):
                    pass

        def theirs() -> None:
            for x_ND in own:
                faiss.knn(x_ND, x_ND, 16, metric=faiss.METRIC_INNER_PRODUCT)

        own = [read(np.sort(cells.read(one)[0])) for one in picked]
        share = sum(clusters - 1 - one for one in picked) / (clusters * (clusters - 1) / 2)
        their_share = sum(size_K[one] ** 2 for one in picked) / (size_K**2).sum()
        found = planted(read, rows, sketch, cells, comparer)
        pairs = [(cpu(ours) / share, cpu(theirs) / their_share) for _ in range(options.rounds)]
    our_s, their_s = (statistics.median(found) for found in zip(*pairs, strict=True))
    told = {"vectors": rows, "clusters": clusters, "measured": len(picked), "ready_cpu_s": ready_s,
            "laionkit_cpu_s": ready_s + our_s, "faiss_cpu_s": their_s,
            "times_faiss": (ready_s + our_s) / their_s, "rounds": options.rounds,
            **found}  # fmt: skip
    print(json.dumps({name: round(value, 2) for name, value in told.items()}))


def planted(
    read: ReadRows, rows: int, sketch: Sketch, cells: Cells, comparer: near._Comparer
) -> dict[str, int]:
    """Planted pairs, those that a border separates, and those that both looks let through."""
    count = rows // 1000
    one_N, other_N = np.arange(count), np.arange(rows - count, rows)
    x_NP, y_NP = sketch.of(read(one_N)), sketch.of(read(other_N))
    alike = np.einsum("np,np->n", sketch.compared(x_NP), sketch.compared(y_NP))
    lean_NK, other_NK = (sketch.bordered(s_NP) @ cells.centroid_KP.T for s_NP in (x_NP, y_NP))
    own_N, others_N = lean_NK.argmax(axis=1), other_NK.argmax(axis=1)
    lean_N = lean_NK[one_N, own_N] - lean_NK[one_N, others_N]
    lean_N += other_NK[one_N, others_N] - other_NK[one_N, own_N]
    apart_N = np.linalg.norm(cells.centroid_KP[own_N] - cells.centroid_KP[others_N], axis=1)
    compared = (lean_N <= comparer.distance * apart_N + 1e-5) & (alike >= 0.95 - 1e-5)
    return {"planted": count, "across_a_border": int((own_N != others_N).sum()),
            "compared": int(compared.sum())}  # fmt: skip


def cpu(work: Callable[[], None]) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
