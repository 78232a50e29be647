"""fetch against img2dataset: CPU per image, wall of a small command, memory, quality.

`python -m benchmarks.fetch [--repeats 5] [--small 2000] [--large 12000] [--photos FOLDER]`

Both fetch the same links from one local server, two processes with 64 connections each, 256 px
keep_ratio, JPEG q95, sha256. *Marginal* CPU is the slope between a small and a large run, so that
start-up falls out. Runs alternate; the numbers are medians and the ratios those of medians.
img2dataset runs in the interpreter given by --peer (a venv of its own), default this one.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

RESULTS = Path(__file__).parent / "results" / "fetch.json"
# At least two shards in the small run too, so that it fills both processes and the slope holds no
# start-up. Much smaller shards would charge img2dataset a thread pool each.
SHARD = 1000
ORDER = ("laionkit", "img2dataset")

OURS = """
import sys
from laionkit.core.runner import Runner
from laionkit.stages.fetch import FetchConfig, fetch
if __name__ == "__main__":
    fetch(sys.argv[1], FetchConfig(allow_private=True, resize_mode="keep_ratio", per_host=4096,
          concurrency=64, timeout_s=60, verify_tls=sys.argv[2] != "notls"),
          runner=Runner(workers=2))
"""
PEER = """
import sys, img2dataset
if __name__ == "__main__":
    img2dataset.download(url_list=sys.argv[1], output_folder=sys.argv[2], image_size=256,
        resize_mode="keep_ratio", processes_count=2, thread_count=64, input_format="parquet",
        url_col="url", caption_col="caption", output_format="webdataset", compute_hash="sha256",
        extract_exif=False, number_sample_per_shard=1000, timeout=60)
"""


@dataclass
class Run:
    """One command: CPU seconds of its process tree, wall seconds, peak PSS in MB, images."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    images: int


def pss_mb(root: int) -> float:
    """Proportional memory of a process and all that it started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    total, todo = 0.0, [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        with contextlib.suppress(OSError, IndexError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(rollup.split("\nPss:")[1].split()[0]) / 1024
    return total


def measure(command: list[str], folder: Path, count: Path) -> Run:
    """Run a command to its end and see what it cost and how many images it left."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    started, peak, over = time.monotonic(), [0.0], threading.Event()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

        def watch() -> None:
            while not over.wait(0.2):
                peak[0] = max(peak[0], pss_mb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        over.set()
        watcher.join()
    wall = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"{command[:3]} failed: {(folder / 'log').read_text()[-2000:]}")
    stats = [json.loads(path.read_text()) for path in count.glob("*_stats.json")]
    images = sum(stat["successes"] for stat in stats)
    return Run(usage.ru_utime + usage.ru_stime, wall, peak[0], images)


def links(folder: Path, base: str, count: int) -> Path:
    """A list of `count` links to the server."""
    path = folder / f"links-{count}.parquet"
    urls = [f"{base}/{i}" for i in range(count)]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {i}" for i in range(count)]}), path)
    return path


def run_ours(source: Path, folder: Path) -> Run:
    """Laionkit on a list of links."""
    from laionkit.stages.metadata import MetadataConfig, metadata

    dataset = str(folder / "data")
    metadata([str(source)], dataset, MetadataConfig(shard_size=SHARD))
    script = folder / "ours.py"
    script.write_text(OURS)
    command = [sys.executable, str(script), dataset, "notls"]
    return measure(command, folder, Path(dataset) / "shards")


def run_peer(source: Path, folder: Path, python: str) -> Run:
    """img2dataset on the same list."""
    script = folder / "peer.py"
    script.write_text(PEER)
    output = folder / "out"
    return measure([python, str(script), str(source), str(output)], folder, output)


@contextlib.contextmanager
def server(side: int, photos: Path | None) -> Iterator[str]:
    """A picture server of its own process; yields its address."""
    command = [sys.executable, "-m", "benchmarks.fetch_server", "--side", str(side)]
    command += ["--folder", str(photos)] if photos else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def compare(side: int, asked: argparse.Namespace) -> dict[str, object]:
    """Alternate both on small and large runs; medians, slopes and ratios."""
    runs: dict[str, list[Run]] = {}
    with server(side, asked.photos) as base, tempfile.TemporaryDirectory() as root:
        lists = {count: links(Path(root), base, count) for count in (asked.small, asked.large)}
        for repeat in range(asked.repeats):
            for count, source in lists.items():
                for name in (
                    ("laionkit", "img2dataset") if repeat % 2 else ("img2dataset", "laionkit")
                ):
                    with tempfile.TemporaryDirectory(dir=root) as folder:
                        run = (
                            run_ours(source, Path(folder))
                            if name == "laionkit"
                            else run_peer(source, Path(folder), asked.peer)
                        )
                    if run.images != count:
                        raise SystemExit(f"{name} made {run.images} images of {count} links")
                    runs.setdefault(f"{name} {count}", []).append(run)
                    print(f"{side} px, {name} {count}: {run}", flush=True)
    return summary(runs, asked.small, asked.large)


def summary(runs: dict[str, list[Run]], small: int, large: int) -> dict[str, object]:
    """Medians and their ratios, ours over img2dataset's."""
    found: dict[str, dict[str, float]] = {}
    for name in ("laionkit", "img2dataset"):
        one, many = runs[f"{name} {small}"], runs[f"{name} {large}"]
        cpu = statistics.median(r.cpu_s for r in many) - statistics.median(r.cpu_s for r in one)
        found[name] = {
            "marginal_cpu_ms": 1000 * cpu / (large - small),
            f"wall_s_{small}": statistics.median(r.wall_s for r in one),
            f"images_per_s_{large}": large / statistics.median(r.wall_s for r in many),
            "peak_pss_mb": statistics.median(r.peak_mb for r in many),
        }
    ratios = {k: v / found["img2dataset"][k] for k, v in found["laionkit"].items()}
    every = {name: [asdict(run) for run in taken] for name, taken in runs.items()}
    return {**found, "ratios": ratios, "runs": every}


def main() -> None:
    """Measure, store, show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--large", type=int, default=12_000)
    parser.add_argument("--sides", type=int, nargs="+", default=[500, 1500])
    parser.add_argument("--photos", type=Path, help="folder of photographs to serve, resized")
    parser.add_argument("--peer", default=sys.executable, help="interpreter that has img2dataset")
    asked = parser.parse_args()
    result: dict[str, object] = {
        "command": " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for side in asked.sides:
        result[f"{side} px http"] = compare(side, asked)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for side in asked.sides:
        print(side, json.dumps(result[f"{side} px http"]["ratios"], indent=1))  # type: ignore[index]


if __name__ == "__main__":
    main()
