"""How fast pictures and captions become vectors, beside clip-retrieval 2.45 and the bare model.

    python benchmarks/embed.py --out benchmarks/results/embed.json
    python benchmarks/embed.py --model ViT-L-14 --images 20000 --small 4000 --shard 2000   # a GPU

Everything is drawn here: photographs-like JPEGs of 256 px, captions of 3 to 30 words, and seeded
random weights of the real architecture in one file that both sides load. Rates are marginal:
(images of the large set − of the small one) over the difference of wall seconds, so that imports
and loading do not count; medians over rounds in which the sides alternate. clip-retrieval runs in
an environment of its own (``--peer``), made here on first use; it sees this one's torch.
"""

import argparse
import io
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from laionkit.core.files import Folder
from laionkit.core.shards import ShardWriter

# A 15-minute load above this share of the cores, the benchmark's own included on each of them,
# says that others used the machine.
BUSY = 1.5
NOTE_BUSY = (
    "The machine was shared with other work while this ran: rates by the wall clock are left out, "
    "raw seconds are kept. CPU seconds an image are steadier. Repeat on an idle machine."
)
PEER = "clip-retrieval==2.45.0"
# clip-retrieval pins numpy below 2 and open_clip below 3; with these it runs beside a new torch.
PEER_ALONE = [
    PEER,
    "all_clip",
    "clip-anytorch",
    "autofaiss",
    "embedding-reader",
    "multilingual-clip",
]
PEER_WITH = [
    "braceexpand", "fire", "flask", "flask_cors", "flask_restful", "ftfy", "h5py",
    "prometheus-client", "sentence-transformers", "setuptools==69.5.1", "wandb", "webdataset",
]  # fmt: skip
WORDS = ["a", "the", "of", "on", "in", "red", "old", "small", "photo", "picture", "house", "dog"]
OURS = """
import json, sys
from laionkit.core.runner import Runner
from laionkit.stages.adopt import adopt
from laionkit.stages.embed import EmbedConfig, embed
tars, dataset, settings, device = sys.argv[1:]
adopt(tars, dataset)
report = embed(dataset, EmbedConfig(**json.loads(settings)), runner=Runner(device=device))
print(report.counts.ok)
"""
BARE = """
import json, sys, time
import numpy as np
from laionkit.backends.clip import load_model
model, precision, device, batch = sys.argv[1:]
loaded = load_model(model, precision=precision, device=device)
edge = loaded.preprocess.height_px
pixels = np.random.default_rng(0).integers(0, 256, (int(batch), edge, edge, 3), dtype=np.uint8)
rates = []
for _ in range(6):
    started = time.perf_counter()
    for _ in range(4 if loaded.device.type == "cuda" else 1):
        rows = loaded.embed_images(pixels)
    rows.cpu()
    rates.append((4 if loaded.device.type == "cuda" else 1) * len(pixels)
                 / (time.perf_counter() - started))
print(json.dumps({"images_per_s": sorted(rates[1:])[2], "precision": str(loaded.precision),
                  "device": str(loaded.device)}))
"""
DECODE = """
import json, sys, time
from pathlib import Path
from laionkit.backends.clip import load_model
from laionkit.core.shards import image_member, read_contents
from laionkit.stages.embed import auto_decoders
from laionkit.stages.embed.pool import DecodePool
model, folder = sys.argv[1:]
preprocess = load_model(model, precision="fp32", device="cpu").preprocess
shards = []
for tar in sorted(Path(folder).glob("*.tar")):
    with tar.open("rb") as file:
        members = [image_member(parts)[1] for parts in read_contents(file).samples.values()]
    shards.append((str(tar), [(member.offset, member.size) for member in members]))
with DecodePool([preprocess], max(len(m) for _, m in shards), auto_decoders(), 4) as pool:
    pool.release(first := pool.submit(*shards[0])), first.wait()  # the processes are up
    started, done, ahead = time.perf_counter(), 0, []
    for path, members in shards * 4:
        if not pool.has_room:
            batch = ahead.pop(0)
            done += len(batch.wait())
            pool.release(batch)
        ahead.append(pool.submit(path, members))
    done += sum(len(batch.wait()) for batch in ahead)
    seconds = time.perf_counter() - started
print(json.dumps({"images_per_s": round(done / seconds, 1), "processes": auto_decoders()}))
"""


def draw(folder: Path, images: int, shard: int) -> Path:
    """Write webdataset tars of drawn pictures with captions."""
    rng = np.random.default_rng(0)
    home = Folder(folder)
    for number, first in enumerate(range(0, images, shard)):
        with home.create(f"{number:05d}.tar") as file, ShardWriter(file) as writer:
            for i in range(min(shard, images - first)):
                caption = " ".join(rng.choice(WORDS, rng.integers(3, 31)))
                key = f"{number:05d}{i:04d}"
                about = json.dumps({"key": key, "caption": caption}).encode()
                writer.add(key, {"jpg": picture(rng), "json": about, "txt": caption.encode()})
    return folder


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG of 256 px on its shorter side, as detailed as a photograph (about 20 kB)."""
    height, width = rng.permutation([256, int(rng.integers(256, 400))])
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 9, (int(height), int(width), 1))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()


def save_weights(architecture: str, path: Path) -> Path:
    """Seeded random weights of a real architecture."""
    import open_clip
    import torch

    torch.manual_seed(0)
    torch.save(open_clip.create_model(architecture).state_dict(), path)
    return path


def make_peer(folder: Path) -> Path:
    """An environment with clip-retrieval in it, made once; returns its command."""
    command = folder / "bin" / "clip-retrieval"
    if not command.exists():
        venv.create(folder, with_pip=True)
        ours = sysconfig.get_path("purelib")
        theirs = next(folder.glob("lib/python*/site-packages"))
        (theirs / "ours.pth").write_text(ours + "\n")
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *PEER_WITH], check=True)
        subprocess.run([*pip, "--no-deps", *PEER_ALONE], check=True)
    return command


def timed(command: list[str]) -> tuple[float, float, str]:
    """Run a command: wall seconds, CPU seconds of it and its children, its stdout."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wall = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{command[:3]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout


def run_ours(
    tars: Path, work: Path, model: str, precision: str, device: str
) -> tuple[float, float]:
    """Adopt and embed; every picture must get its vector."""
    dataset = work / "ours"
    shutil.rmtree(dataset, ignore_errors=True)
    settings = json.dumps({"model": model, "precision": precision})
    command = [sys.executable, "-c", OURS, str(tars), str(dataset), settings, device]
    wall, cpu, _ = timed(command)
    return wall, cpu


def run_peer(peer: Path, tars: Path, work: Path, model: str, workers: int) -> tuple[float, float]:
    """clip-retrieval on the same tars, its own defaults but for the batch of its README."""
    output = work / "peer"
    shutil.rmtree(output, ignore_errors=True)
    last = len(list(tars.glob("*.tar"))) - 1
    wall, cpu, _ = timed(
        [
            str(peer),
            "inference",
            f"--input_dataset={tars}/{{00000..{last:05d}}}.tar",
            f"--output_folder={output}",
            "--input_format=webdataset",
            "--batch_size=64",
            f"--num_prepro_workers={workers}",
            f"--clip_model=open_clip:{model}",
            "--enable_metadata=True",
        ]
    )
    return wall, cpu


def marginal(small: list[float], large: list[float], images: int) -> float:
    """Images a second beyond start-up."""
    return images / (statistics.median(large) - statistics.median(small))


def machine() -> dict[str, Any]:
    """What this ran on."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "avx512_bf16": any("avx512_bf16" in line for line in lines),
        "gpu": gpu,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All rounds of all sides."""
    model = f"{args.model}/{save_weights(args.model, work / 'weights.pt')}"
    sizes = {"small": args.small, "large": args.images}
    tars = {name: draw(work / name, n, args.shard) for name, n in sizes.items()}
    workers = min(4, os.cpu_count() or 1, -(-args.small // args.shard))
    sides = {p: lambda t, p=p: run_ours(t, work, model, p, args.device) for p in args.precisions}
    if not args.no_peer:
        peer = make_peer(args.peer)
        sides["clip-retrieval"] = lambda t: run_peer(peer, t, work, model, workers)
    walls: dict[str, dict[str, list[float]]] = {s: {"small": [], "large": []} for s in sides}
    cpus: dict[str, dict[str, list[float]]] = {s: {"small": [], "large": []} for s in sides}
    for number in range(args.rounds):
        for side, run in sides.items():
            for name, folder in tars.items():
                wall, cpu = run(folder)
                walls[side][name].append(round(wall, 2))
                cpus[side][name].append(round(cpu, 2))
                print(f"round {number} {side} {name}: {wall:.1f} s wall, {cpu:.1f} s CPU")
    more = args.images - args.small
    decode = [sys.executable, "-c", DECODE, model, str(tars["large"])]
    result: dict[str, Any] = {"wall_s": walls, "cpu_s": cpus, "images": sizes}
    result["decoding_alone"] = json.loads(timed(decode)[2])
    result["busy"] = os.getloadavg()[2] > BUSY * (os.cpu_count() or 1)
    result["cpu_s_per_image"] = {
        s: round(1 / marginal(c["small"], c["large"], more), 4) for s, c in cpus.items()
    }
    result["bare_model"] = {
        p: json.loads(timed([sys.executable, "-c", BARE, model, p, args.device, "64"])[2])
        for p in args.precisions
    }
    add_ratio(result, "cpu_s_per_image", args.precisions, -1)
    if result["busy"]:
        result["note"] = NOTE_BUSY
        return result
    result["images_per_s"] = {
        s: round(marginal(w["small"], w["large"], more), 2) for s, w in walls.items()
    }
    result["of_bare_model"] = {
        p: round(result["images_per_s"][p] / bare["images_per_s"], 3)
        for p, bare in result["bare_model"].items()
    }
    add_ratio(result, "images_per_s", args.precisions, 1)
    return result


def add_ratio(result: dict[str, Any], kind: str, precisions: list[str], better: int) -> None:
    """Ours beside clip-retrieval's; above 1 is better."""
    theirs = result[kind].get("clip-retrieval")
    if theirs:
        result[f"ratio_{kind}"] = {
            p: round((result[kind][p] / theirs) ** better, 2) for p in precisions
        }


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--small", type=int, default=100)
    parser.add_argument("--shard", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", nargs="+", default=["auto", "fp32"])
    parser.add_argument("--peer", type=Path, default=Path("bench-work/peers/clip-retrieval"))
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("bench-work/embed"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    args.work, args.peer = args.work.resolve(), args.peer.resolve()
    before = machine()
    result = {"benchmark": "embed", "model": args.model, "peer": PEER, "machine": before}
    settings = [f"--images {args.images} --small {args.small} --shard {args.shard}"]
    settings += [f"--rounds {args.rounds} --model {args.model} --device {args.device}"]
    result["command"] = " ".join(["python benchmarks/embed.py", *settings])
    result["commit"] = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result["date"] = time.strftime("%Y-%m-%d")
    result |= measure(args, args.work)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
