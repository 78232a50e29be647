"""What benchmarks/embed.py runs: drawn shards, seeded weights, the peer's environment, commands."""

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fetch_runs import pss_mb
from laionkit.core.files import Folder
from laionkit.core.shards import ShardWriter

PEER = "clip-retrieval==2.45.0"
# clip-retrieval pins numpy below 2 and open_clip below 3; so installed it runs beside a new torch.
PEER_ALONE = [
    PEER,
    "all_clip",
    "clip-anytorch",
    "autofaiss",
    "embedding-reader",
    "multilingual-clip",
    "setuptools==69.5.1",  # has the pkg_resources that these import
]
PEER_WITH = [
    "braceexpand", "fire", "flask", "flask_cors", "flask_restful", "ftfy", "h5py",
    "prometheus-client", "sentence-transformers", "wandb", "webdataset",
]  # fmt: skip
SHARED = ["torch", "torchvision", "numpy", "open_clip_torch"]
DISTINCT = 2000
_series, _drawn = np.random.default_rng(1), list[bytes]()
WORDS = ["a", "the", "of", "on", "in", "red", "old", "small", "photo", "picture", "house", "dog"]

OURS = """
import json, sys
import torch
from laionkit.core.embeddings import embed_stage, embedded_models
from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.stages.adopt import adopt
from laionkit.stages.embed import EmbedConfig, embed
tars, dataset, settings, device = sys.argv[1:]
adopted = adopt(tars, dataset)
report = embed(dataset, EmbedConfig(**json.loads(settings)), runner=Runner(device=device))
(model,) = embedded_models(Folder(dataset))
made = StageRecords(Folder(dataset), embed_stage(model)).made().config
about = {name: made[name] for name in ("precision", "batch_size")}
if torch.cuda.is_available():
    about["gpu_memory_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
about |= {"adopt_s": adopted.seconds, "embed_s": report.seconds}
print(json.dumps({"ok": report.counts.ok, **about}))
"""
# open_clip's own modules as it builds them, nothing of ours: on the device, in the precision.
BARE = """
import json, sys, time
import open_clip, torch
architecture, weights, precision, device, batch, seconds = sys.argv[1:]
types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
model = open_clip.create_model(architecture).eval()
model.load_state_dict(torch.load(weights, weights_only=True))
model = model.to(device, types[precision])
size = model.visual.image_size
height, width = size if isinstance(size, (tuple, list)) else (size, size)
torch.manual_seed(0)
pixels = torch.randn(int(batch), 3, height, width).to(device, types[precision])
tokens = torch.randint(1, 1000, (int(batch), model.context_length)).to(device)
wait = torch.cuda.synchronize if device == "cuda" else lambda: None
def rate(work):
    work()
    rates, until, before = [], time.perf_counter() + float(seconds), time.process_time()
    while len(rates) < 4 or time.perf_counter() < until:
        started = time.perf_counter()
        for _ in range(8 if device == "cuda" else 1):
            work()
        wait()
        rates.append((8 if device == "cuda" else 1) * int(batch) / (time.perf_counter() - started))
    done = len(rates) * (8 if device == "cuda" else 1) * int(batch)
    cpu_ms = 1000 * (time.process_time() - before) / done
    return round(sorted(rates)[len(rates) // 2], 2), round(cpu_ms, 1)
with torch.inference_mode():
    images, image_ms = rate(lambda: model.encode_image(pixels))
    texts, text_ms = rate(lambda: model.encode_text(tokens))
print(json.dumps({"images_per_s": images, "cpu_ms_per_image": image_ms,
                  "whole_captions_per_s": texts, "cpu_ms_per_whole_caption": text_ms}))
"""
DECODE = """
import json, sys, time
from pathlib import Path
from laionkit.backends.clip import load_model
from laionkit.core.tars import image_member, read_contents
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


@dataclass
class Ran:
    """What a command cost: wall and CPU seconds of its tree, peak PSS in MB, what it said."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    said: dict[str, Any] = field(default_factory=dict)


def timed(command: list[str], log: Path, every_s: float = 0.5) -> Ran:
    """Run a command to its end; its last line of stdout may be JSON."""
    peak, over = [0.0], threading.Event()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    with log.open("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

        def watch() -> None:
            while not over.wait(every_s):
                peak[0] = max(peak[0], pss_mb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        wall = time.monotonic() - started
        over.set()
        watcher.join()
    lines = log.read_text(errors="replace").splitlines()
    if code:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n" + "\n".join(lines[-40:]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = next((json.loads(line) for line in reversed(lines) if line.startswith("{")), {})
    return Ran(round(wall, 2), round(cpu, 2), round(peak[0]), said)


def run_ours(tars: Path, work: Path, model: str, precision: str, device: str) -> Ran:
    """Adopt and embed."""
    dataset = work / "ours"
    shutil.rmtree(dataset, ignore_errors=True)
    settings = json.dumps({"model": model, "precision": precision})
    command = [sys.executable, "-c", OURS, str(tars), str(dataset), settings, device]
    return timed(command, work / "ours.log")


def run_peer(peer: Path, tars: Path, work: Path, model: str) -> Ran:
    """clip-retrieval on the same tars, its own defaults but for the batch of its README."""
    output = work / "peer"
    shutil.rmtree(output, ignore_errors=True)
    count = len(list(tars.glob("*.tar")))
    ran = timed(
        [
            str(peer),
            "inference",
            f"--input_dataset={tars}/{{00000..{count - 1:05d}}}.tar",
            f"--output_folder={output}",
            "--input_format=webdataset",
            "--batch_size=64",
            f"--num_prepro_workers={min(4, os.cpu_count() or 1, count)}",
            f"--clip_model=open_clip:{model}",
            "--enable_metadata=True",
        ],
        work / "peer.log",
    )
    rows = [len(np.load(file)) for file in (output / "img_emb").glob("*.npy")]
    return Ran(ran.wall_s, ran.cpu_s, ran.peak_mb, {"ok": sum(rows)})


def run_python(code: str, log: Path, *arguments: object) -> Ran:
    """Run one of the snippets above."""
    return timed([sys.executable, "-c", code, *map(str, arguments)], log)


def make_peer(folder: Path) -> Path:
    """An environment with clip-retrieval in it, made once; returns its command.

    It sees this one's torch, so that both sides compute with the same.
    """
    command = folder / "bin" / "clip-retrieval"
    if not command.exists():
        venv.create(folder, with_pip=True)
        theirs = next(folder.glob("lib/python*/site-packages"))
        (theirs / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        held = folder / "held.txt"
        held.write_text("".join(f"{name}=={version(name)}\n" for name in SHARED))
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "-c", str(held), *PEER_WITH], check=True)
        subprocess.run([*pip, "--no-deps", *PEER_ALONE], check=True)
    return command


def save_weights(architecture: str, path: Path) -> Path:
    """Seeded random weights of a real architecture, made once."""
    if not path.exists():
        import open_clip
        import torch

        torch.manual_seed(0)
        torch.save(open_clip.create_model(architecture).state_dict(), path)
    return path


def draw(folder: Path, images: int, shard: int) -> Path:
    """Webdataset tars of drawn pictures with captions, made once.

    After DISTINCT pictures the same ones come again under new keys: as much work to read.
    """
    folder = folder / f"{images}x{shard}"
    if not folder.exists():
        rng = np.random.default_rng(0)
        home = Folder(folder.with_suffix(".part"))
        for number, first in enumerate(range(0, images, shard)):
            with home.create(f"{number:05d}.tar") as file, ShardWriter(file) as writer:
                for i in range(min(shard, images - first)):
                    caption = " ".join(rng.choice(WORDS, rng.integers(3, 31)))
                    key = f"{number:05d}{i:04d}"
                    about = json.dumps({"key": key, "caption": caption}).encode()
                    jpg = drawn((first + i) % DISTINCT)
                    writer.add(key, {"jpg": jpg, "json": about, "txt": caption.encode()})
        folder.with_suffix(".part").rename(folder)
    return folder


def drawn(number: int) -> bytes:
    """A picture of our series, drawn once for all sets of a run."""
    while len(_drawn) <= number:
        _drawn.append(picture(_series))
    return _drawn[number]


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
