"""fetch against img2dataset: CPU an image, wall of a small command, memory, and what bounds each.

    python -m benchmarks.fetch --photos FOLDER [--cases http-500 …] [--repeats 5] [--seconds 220]

Both sides fetch the same links from one local server, two processes with 64 connections each,
256 px keep_ratio, JPEG q95, sha256. *Marginal* CPU is the slope between a small and a large run,
so that start-up falls out. Runs alternate; the numbers are medians, the ratios those of medians.

Every run is kept in results/fetch.json as soon as it ends. Called again, the benchmark goes on
where it stopped until each case has --repeats alternations; --seconds starts nothing that would
end later, --fresh forgets the case. img2dataset runs in the interpreter that --peer names; --newer
names one of Python >= 3.12, whose urllib shares its TLS context, for the https case.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.fetch_codec import codec_floor_ms
from benchmarks.fetch_runs import Run, Server, links, run_ours, run_peer, serve
from benchmarks.fetch_server import photo_folder

RESULTS = Path(__file__).parent / "results" / "fetch.json"
SMALL, LARGE = 1000, 11_000
OURS, WHOLE, PEER, NEWER = "laionkit", "laionkit with metadata", "img2dataset", "img2dataset newer"
# Rows a shard, so that a small run fills two processes too; ours come in powers of ten. Shards
# much smaller than a thousand would charge img2dataset a thread pool each.
SHARDS = {OURS: 100, PEER: 500}
LARGE_SHARDS = 1000


@dataclass(frozen=True)
class Case:
    """What is served: the longer side in pixels, and whether over TLS, a connection a picture."""

    side: int
    tls: bool = False


CASES = {"http-500": Case(500), "http-1500": Case(1500), "https-500": Case(500, tls=True)}


def cells(asked: argparse.Namespace, case: Case) -> list[tuple[str, int]]:
    """The runs of one alternation, as (side, images)."""
    sides = [OURS, PEER] + ([NEWER] if case.tls and asked.newer else [])
    found = [(side, count) for count in (SMALL, asked.large) for side in sides]
    return found if case.tls else [*found, (WHOLE, SMALL)]


def run(cell: tuple[str, int], source: Path, server: Server, asked: argparse.Namespace) -> Run:
    """Run one side once."""
    side, count = cell
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard = SHARDS[PEER if side in (PEER, NEWER) else OURS] if count == SMALL else LARGE_SHARDS
        if side in (OURS, WHOLE):
            done = run_ours(source, folder, shard, server, whole=side == WHOLE)
        else:
            python = asked.newer if side == NEWER else asked.peer
            done = run_peer(source, folder, shard, server, python)
    if done.images != count:
        raise SystemExit(f"{side} made {done.images} images of {count} links")
    done.commit = commit()
    return done


def go_on(name: str, asked: argparse.Namespace, until: float) -> bool:
    """Run what a case still lacks; False where the time did not suffice."""
    case, result = CASES[name], load()
    kept = result["cases"].setdefault(name, {"runs": {}})
    runs: dict[str, list[dict[str, Any]]] = kept["runs"]
    everything, floor = cells(asked, case), codec_floor_ms(case.side, asked.photos)
    with serve(case.side, asked.photos, tls=case.tls) as server, tempfile.TemporaryDirectory() as d:
        sources = {count: links(Path(d), server.base, count) for count in (SMALL, asked.large)}
        for repeat in range(asked.repeats):
            for cell in everything if repeat % 2 else everything[::-1]:
                done = runs.setdefault(f"{cell[0]} {cell[1]}", [])
                if len(done) > repeat:
                    continue
                if time.monotonic() + 1.1 * max((r["wall_s"] for r in done), default=0) > until:
                    return False
                done.append(asdict(run(cell, sources[cell[1]], server, asked)))
                print(f"{name}, {cell[0]} {cell[1]}: {done[-1]}", flush=True)
                kept["codec_floor_ms"] = floor
                kept["summary"] = summary(runs, floor, asked.large)
                store(result)
    return True


def summary(
    runs: dict[str, list[dict[str, Any]]], floor: dict[str, float], count: int
) -> dict[str, Any]:
    """Medians of each side, and ours over img2dataset's."""
    found: dict[str, dict[str, float]] = {}
    for side in (OURS, WHOLE, PEER, NEWER):
        small, large = runs.get(f"{side} {SMALL}", []), runs.get(f"{side} {count}", [])
        if small:
            found[side] = {f"wall_s_{SMALL}": median(small, "wall_s")}
        if small and large:
            found[side] |= slope(small, large, count, floor.get(side))
    if OURS not in found or PEER not in found:
        return found
    ratios = {k: found[OURS][k] / found[PEER][k] for k in found[OURS] if k in found[PEER]}
    if WHOLE in found:
        key = f"wall_s_{SMALL}"
        ratios[f"{key}_with_metadata"] = found[WHOLE][key] / found[PEER][key]
    cells = [f"{side} {images}" for side in (OURS, PEER) for images in (SMALL, count)]
    alternations = min(len(runs.get(cell, [])) for cell in cells)
    return {**found, "alternations": alternations, "ratios": ratios}


def slope(
    small: list[dict[str, Any]], large: list[dict[str, Any]], count: int, floor_ms: float | None
) -> dict[str, float]:
    """What one more image costs, and what was busy while the large run went."""
    images = count - SMALL
    cpu_ms = 1000 * (median(large, "cpu_s") - median(small, "cpu_s")) / images
    server_ms = 1000 * (median(large, "server_cpu_s") - median(small, "server_cpu_s")) / images
    wall_ms = 1000 * (median(large, "wall_s") - median(small, "wall_s")) / images
    found = {
        "marginal_cpu_ms": cpu_ms,
        "images_per_s_per_core": 1000 / cpu_ms,
        f"images_per_s_{count}": count / median(large, "wall_s"),
        "peak_pss_mb": median(large, "peak_mb"),
        "server_cpu_ms": server_ms,
        "cores_busy": (cpu_ms + server_ms) / wall_ms,
    }
    return found if floor_ms is None else {**found, "codec_share": floor_ms / cpu_ms}


def median(runs: list[dict[str, Any]], key: str) -> float:
    """The middle of one figure."""
    return statistics.median(run[key] for run in runs)


def commit() -> str:
    """The commit that is measured, with a + where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+"]
    here = Path(__file__).parent
    return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip()


def load() -> dict[str, Any]:
    """What was measured so far, with this machine's description."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {"cases": {}, **found, **circumstances("python -m benchmarks.fetch --photos FOLDER")}


def circumstances(command: str) -> dict[str, Any]:
    """How, when and on what a result was had."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }


def store(result: dict[str, Any], path: Path = RESULTS) -> None:
    """Keep what was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Measure what is lacking, show what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--repeats", type=int, default=5, help="alternations of each case")
    parser.add_argument("--large", type=int, default=LARGE, help="images of a large run")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="stop after so long")
    parser.add_argument(
        "--photos", type=photo_folder, help="folder of photographs to serve, resized"
    )
    parser.add_argument("--peer", default=sys.executable, help="interpreter that has img2dataset")
    parser.add_argument("--newer", help="another that has it, of Python >= 3.12")
    parser.add_argument("--fresh", action="store_true", help="forget the cases first")
    asked = parser.parse_args()
    until = time.monotonic() + asked.seconds
    if asked.fresh:
        result = load()
        result["cases"] = {k: v for k, v in result["cases"].items() if k not in asked.cases}
        store(result)
    whole = all([go_on(name, asked, until) for name in asked.cases])
    for name in asked.cases:
        found = load()["cases"].get(name, {}).get("summary", {})
        print(name, json.dumps(found, indent=1))
    if not whole:
        print("Not finished: run the same command again to go on.")


if __name__ == "__main__":
    main()
