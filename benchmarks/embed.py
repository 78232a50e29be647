"""How fast pictures and captions become vectors, beside clip-retrieval 2.45 and the bare model.

    python -m benchmarks.embed --rounds 3                     # every case of this machine
    python -m benchmarks.embed --cases fp32 clip-retrieval    # some; results accumulate in --out
    python -m benchmarks.embed --model ViT-L-14 --images 20000 --small 4000 --shard 2000   # a GPU

Everything is drawn here: photograph-like JPEGs of 256 px, captions of 3 to 30 words, and seeded
random weights of the real architecture in one file that both sides load. Rates are marginal:
(images of the large set − of the small one) over the difference of seconds, so that imports and
loading do not count; medians over rounds in which the sides alternate. Each run is stored with
its commit and the machine's load, and the summary is made of all runs in the file anew. Its
``roofline_…`` are end-to-end rates over the bare model's forward rate.

Cases: ``auto fp32`` laionkit end to end, ``clip-retrieval`` the peer on the same tars (in an
environment of its own, ``--peer``, made on first use), ``wall-SIDE`` the whole command on 1,000
pictures, ``bare-PRECISION`` open_clip's own towers at the batch and precision that laionkit
chose, ``decode`` the decoders without a model, ``memory`` 8 and 40 shards with the tiny model.
Without a GPU all of them; with one, ``auto bare-auto decode``.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import embed_sides as sides

RESULTS = Path(__file__).parent / "results"
WALL_IMAGES = 1000
MEMORY_SHARDS = {"few": 8, "many": 40}
MEMORY_SHARD = 100
PEER = "clip-retrieval"
CPU_CASES = ("auto", "fp32", PEER, "wall-auto", "wall-fp32", f"wall-{PEER}")
CPU_CASES = (*CPU_CASES, "bare-auto", "bare-fp32", "decode", "memory")
GPU_CASES = ("auto", "bare-auto", "decode")


class Bench:
    """One machine, one model: runs cases and keeps what they cost."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Take up the runs that are stored."""
        self.args, self.work = args, args.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.weights = sides.save_weights(args.model, self.work / f"{args.model}.pt")
        self.model = f"{args.model}/{self.weights}"
        self.stored: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
        self.runs: list[dict[str, Any]] = self.stored.get("runs", [])

    def do(self, case: str) -> None:
        """Run one case once."""
        if case in ("auto", "fp32", "bf16", PEER):
            for size in ("small", "large"):
                images = self.args.small if size == "small" else self.args.images
                self.keep(case, size, self.side(case, self.draw(images)), images)
        elif case.startswith("wall-"):
            ran = self.side(case.removeprefix("wall-"), self.draw(WALL_IMAGES))
            self.keep(case, "whole", ran, WALL_IMAGES)
        elif case.startswith("bare-"):
            chosen = self.chosen(case.removeprefix("bare-"))
            arguments = (self.args.model, self.weights, chosen["precision"], self.device())
            log = self.work / "bare.log"
            self.keep(case, "", sides.run_python(
                sides.BARE, log, *arguments, chosen["batch_size"], self.args.bare_s
            ))  # fmt: skip
        elif case == "decode":
            tars = self.draw(self.args.small)
            log = self.work / "decode.log"
            self.keep(case, "", sides.run_python(sides.DECODE, log, self.model, tars))
        elif case == "memory":
            for size, shards in MEMORY_SHARDS.items():
                tars = sides.draw(self.work, shards * MEMORY_SHARD, MEMORY_SHARD)
                ran = sides.run_ours(tars, self.work, "tiny", "fp32", self.args.device)
                self.keep(case, size, ran, shards * MEMORY_SHARD)
        else:
            raise SystemExit(f"no case is called {case}: see --help")

    def draw(self, images: int) -> Path:
        """Tars of so many pictures."""
        return sides.draw(self.work, images, self.args.shard)

    def device(self) -> str:
        """Where a bare tower runs."""
        import torch

        has_gpu = self.args.device == "auto" and torch.cuda.is_available()
        return "cuda" if has_gpu else self.args.device.replace("auto", "cpu")

    def side(self, name: str, tars: Path) -> sides.Ran:
        """Run laionkit in a precision, or the peer, on tars."""
        if name == PEER:
            return sides.run_peer(sides.make_peer(self.args.peer), tars, self.work, self.model)
        return sides.run_ours(tars, self.work, self.model, name, self.args.device)

    def chosen(self, case: str) -> dict[str, Any]:
        """Precision and batch that laionkit chose in a run of this case, made if need be."""
        said = [run["said"] for run in self.runs if run["case"] == case]
        if not said:
            self.do(case)
            return self.chosen(case)
        return said[-1]

    def keep(self, case: str, size: str, ran: sides.Ran, images: int = 0) -> None:
        """Store a run and everything that follows of all runs."""
        if images and ran.said.get("ok") != images:
            raise SystemExit(f"{case}: {ran.said.get('ok')} of {images} pictures were embedded")
        about = {"case": case, "size": size, "images": images, **asdict(ran)}
        about |= {"commit": commit(), "load": os.getloadavg()[0], "at": time.strftime("%F %H:%M")}
        self.runs.append(about)
        print(
            json.dumps({k: about[k] for k in ("case", "size", "wall_s", "cpu_s", "said")}),
            flush=True,
        )
        result = {"benchmark": "embed", "model": self.args.model, "peer": sides.PEER}
        result |= {"machine": machine(), "command": self.command(), "summary": summary(self.runs)}
        self.args.out.write_text(json.dumps(result | {"runs": self.runs}, indent=1) + "\n")

    def command(self) -> str:
        """What measures the same again."""
        args = self.args
        sizes = f"--images {args.images} --small {args.small} --shard {args.shard}"
        return f"python -m benchmarks.embed --model {args.model} {sizes} --device {args.device}"


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all runs, rates, and our ratios to the peer and to the bare model."""
    cases = list(dict.fromkeys(run["case"] for run in runs))
    found: dict[str, Any] = {}
    for case in cases:
        mine = [run for run in runs if run["case"] == case]
        if case == "memory":
            found[case] = {f"{size}_shards_peak_mb": median(mine, size, "peak_mb")
                           for size in {run["size"]: 0 for run in mine}}  # fmt: skip
        elif mine[0]["size"] == "small":
            if any(run["size"] == "large" for run in mine):
                found[case] = marginal(mine)
        elif case.startswith("wall-"):
            found[case] = {"wall_s": median(mine, "whole", "wall_s"), "images": WALL_IMAGES}
        else:
            found[case] = {k: statistics.median(run["said"][k] for run in mine)
                           for k in mine[0]["said"]}  # fmt: skip
    for case in ("auto", "fp32", "bf16"):
        ours, bare, theirs = (found.get(c) for c in (case, f"bare-{case}", PEER))
        if ours and bare:
            ours |= roofline(ours, bare)
        if ours and theirs:
            ours["times_peer_by_wall"] = round(ours["images_per_s"] / theirs["images_per_s"], 2)
            ours["times_peer_by_cpu"] = round(
                theirs["cpu_ms_per_image"] / ours["cpu_ms_per_image"], 2
            )
    return found


def roofline(ours: dict[str, Any], bare: dict[str, Any]) -> dict[str, float]:
    """What share of the bare model's forward rate is reached end to end, captions included.

    Beside the image tower alone, and beside both towers (captions at their whole context).
    """
    both_s = 1 / bare["images_per_s"] + 1 / bare["whole_captions_per_s"]
    both_ms = bare["cpu_ms_per_image"] + bare["cpu_ms_per_whole_caption"]
    shares = {
        "roofline_image_tower": ours["embedded_per_s"] / bare["images_per_s"],
        "roofline_both_towers": ours["embedded_per_s"] * both_s,
        "roofline_image_tower_by_cpu": bare["cpu_ms_per_image"] / ours["cpu_ms_per_image"],
        "roofline_both_towers_by_cpu": both_ms / ours["cpu_ms_per_image"],
    }
    return {name: round(share, 3) for name, share in shares.items()}


def marginal(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Images a second and CPU time an image beyond start-up, medians of runs.

    `images_per_s` is of the whole command, `embedded_per_s` of embed alone, without adopting.
    """

    def beyond(what: str) -> float:
        return median(runs, "large", what) - median(runs, "small", what)

    images, said = beyond("images"), runs[-1]["said"]
    found = {
        "images_per_s": round(images / beyond("wall_s"), 2),
        "cpu_ms_per_image": round(1000 * beyond("cpu_s") / images, 1),
        "peak_mb": median(runs, "large", "peak_mb"),
        "rounds": sum(run["size"] == "large" for run in runs),
    }
    if "embed_s" in said:
        found["embedded_per_s"] = round(images / beyond("embed_s"), 2)
        found["adopt_ms_per_image"] = round(1000 * beyond("adopt_s") / images, 2)
    return found | {k: v for k, v in said.items() if k not in ("ok", "adopt_s", "embed_s")}


def median(runs: list[dict[str, Any]], size: str, what: str) -> float:
    """The median of a number over runs of one size that have it, whether measured or said."""
    known = ({**run["said"], **run} for run in runs if run["size"] == size)
    return statistics.median(run[what] for run in known if what in run)


def commit() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """What this ran on."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "avx512_bf16": any("avx512_bf16" in line for line in lines),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", help="default: all that this machine can run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--small", type=int, default=160)
    parser.add_argument("--shard", type=int, default=80)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--bare-s", type=float, default=8.0, help="seconds a bare tower runs")
    parser.add_argument("--peer", type=Path, default=Path("bench-work/peers/clip-retrieval"))
    parser.add_argument("--work", type=Path, default=Path("bench-work/embed"))
    parser.add_argument("--out", type=Path, help="default: results/embed.json, with a GPU its own")
    args = parser.parse_args()
    has_gpu = machine()["gpu"] is not None and args.device in ("auto", "cuda")
    if args.out is None:
        args.out = RESULTS / (f"embed-gpu-{args.model}.json" if has_gpu else "embed.json")
    args.peer = args.peer.resolve()
    bench = Bench(args)
    for _ in range(args.rounds):
        for case in args.cases or (GPU_CASES if has_gpu else CPU_CASES):
            bench.do(case)
    print(json.dumps(summary(bench.runs), indent=1))


if __name__ == "__main__":
    main()
