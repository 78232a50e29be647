"""How was the built-in `tiny` CLIP made? Train it again, on pictures drawn on the fly.

    python examples/train_tiny_clip.py --steps 1600 --out tiny-clip

draws captioned pictures, trains an open_clip model with open_clip's contrastive loss, measures it
on (colour, shape) pairs it never saw, and writes model.safetensors, tokenizer.json, config.json
and measured.json. `laionkit.backends.tiny.load_tiny(folder=...)` loads the result. The shipped
weights took two runs, the second with --start; their MODEL_CARD.md says which.

Shapes: N pictures of a batch, L tokens of a caption, D embedding width.
"""

import argparse
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch.utils.data import DataLoader, IterableDataset

from laionkit.backends.tiny import FOLDER, as_input, build_tiny, load_tiny
from laionkit.backends.tiny.evaluate import Measured, evaluate
from laionkit.backends.tiny.tokenizer import TinyTokenizer
from laionkit.ops import pictures

logger = logging.getLogger("train_tiny_clip")

EDGE_PX = 64
FAMILY = 8
WARM_UP_STEPS = 100
WEIGHT_DECAY = 0.05
MEASURE_SEED = 20_240_229
SPELLINGS = {"grey": "gray", "centre": "center"}


class DrawnBatches(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Endless batches of (pictures uint8 [N, 64, 64, 3], captions int64 [N, L])."""

    def __init__(self, tokenizer: TinyTokenizer, batch_size: int, seed: int) -> None:
        self.tokenizer, self.batch_size, self.seed = tokenizer, batch_size, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield one batch after the other: three eighths random scenes, the rest families."""
        cv2.setNumThreads(0)
        rng = np.random.default_rng(self.seed)
        while True:
            scenes = [pictures.random_scene(rng) for _ in range(self.batch_size * 3 // 8)]
            texts = [pictures.caption(scene, rng) for scene in scenes]
            while len(scenes) < self.batch_size:
                family = draw_family(rng)
                scenes += family
                texts += [pictures.caption(scene, rng, full_share=0.75) for scene in family]
            drawn = np.stack([draw_like_downloaded(scene, rng) for scene in scenes])
            tokens = self.tokenizer([with_noise(text, rng) for text in texts])
            yield torch.from_numpy(drawn[: self.batch_size]), tokens[: self.batch_size]


def draw_family(rng: np.random.Generator) -> list[pictures.Scene]:
    """Up to eight scenes that only their shape, or a third of the time their colour, tells apart.

    Ground, place and texture alone tell most random pictures of a batch from each other: without
    families, and with a ModifiedResNet of 3 million parameters, the loss fell to 0.8 in 600 steps
    while zero-shot shape was at chance.
    """
    scene = pictures.random_scene(rng, kind="single" if rng.random() < 0.8 else "group")
    differ_in = "shape" if rng.random() < 0.67 else "colour"
    return pictures.relatives(scene, rng, differ_in, FAMILY)


def draw_like_downloaded(scene: pictures.Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw at the model's size, or a quarter of the time larger and shrunk, as real ones are."""
    if rng.random() < 0.75:
        return pictures.draw(scene, EDGE_PX)
    larger = pictures.draw(scene, int(rng.integers(80, 176)))
    shrunk = cv2.resize(larger, (EDGE_PX, EDGE_PX), interpolation=cv2.INTER_AREA)
    return shrunk.astype(np.uint8)


def with_noise(text: str, rng: np.random.Generator) -> str:
    """Put a made-up word into one caption of twenty, so that unknown words come to mean little."""
    if rng.random() > 0.05:
        return text
    words = text.split(" ")
    made_up = bytes(rng.integers(97, 123, size=rng.integers(2, 7)).tolist()).decode()
    words.insert(int(rng.integers(len(words) + 1)), made_up)
    return " ".join(words)


def make_tokenizer(path: Path) -> TinyTokenizer:
    """List the words that captions use, those of 20,000 drawn ones, in alphabetical order."""
    rng = np.random.default_rng(0)
    scenes = (pictures.random_scene(rng, unseen=None) for _ in range(20_000))
    words = {word for s in scenes for word in pictures.caption(s, rng).replace(",", " ,").split()}
    table = {"words": sorted(words), "spellings": SPELLINGS}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return TinyTokenizer.load(path)


def make_optimizer(model: torch.nn.Module, peak_lr: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only, as open_clip's own training does."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.98), eps=1e-6)


def make_schedule(
    optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Rise for 100 steps (a tenth of a short run), then fall to nothing along a cosine."""
    total = max(4, steps + 1)  # OneCycleLR divides by zero below
    warm_up = max(2, min(WARM_UP_STEPS, steps // 10))
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=total,
        pct_start=warm_up / total,
        cycle_momentum=False,
    )


def contrast(
    model: open_clip.CLIP, image_NCHW: torch.Tensor, token_NL: torch.Tensor
) -> torch.Tensor:
    """open_clip's contrastive loss of one batch; the towers run in bfloat16, the loss does not."""
    image_NCHW = image_NCHW.contiguous(memory_format=torch.channels_last)
    with torch.autocast(image_NCHW.device.type, torch.bfloat16):
        image_ND = model.encode_image(image_NCHW, normalize=True)
        text_ND = model.encode_text(token_NL, normalize=True)
    return open_clip.ClipLoss()(image_ND.float(), text_ND.float(), model.logit_scale.exp())


def measure(
    model: open_clip.CLIP, preprocess_cfg: dict[str, Any], tokenizer: TinyTokenizer
) -> Measured:
    """Measure on 2,000 single things whose (colour, shape) pair training never drew."""
    scenes = pictures.unseen_singles(np.random.default_rng(MEASURE_SEED), 2000)
    return evaluate(
        model,
        preprocess_cfg,
        tokenizer,
        np.stack([pictures.draw(scene, EDGE_PX) for scene in scenes]),
        captions=[pictures.full_caption(scene) for scene in scenes],
        colours=[scene.things[0].colour for scene in scenes],
        shapes=[scene.things[0].shape for scene in scenes],
    )


def save_and_measure(model: open_clip.CLIP, out: Path, facts: dict[str, int]) -> None:
    """Write float16 weights, half the size of float32, and what they measure once read back."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    weights = save(state)
    (out / "model.safetensors").write_bytes(weights)
    read_back, preprocess_cfg, tokenizer = load_tiny(folder=out)
    measured = measure(read_back, preprocess_cfg, tokenizer)
    report = {**asdict(measured), **facts, "sha256": hashlib.sha256(weights).hexdigest()}
    (out / "measured.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    logger.info("%s", report)


def train(args: argparse.Namespace) -> None:
    """Train for a number of steps and write the model's folder."""
    args.out.mkdir(parents=True, exist_ok=True)
    if args.out.resolve() != FOLDER.resolve():
        shutil.copy(FOLDER / "config.json", args.out / "config.json")
    tokenizer = make_tokenizer(args.out / "tokenizer.json")
    torch.manual_seed(args.seed)
    model, preprocess_cfg = load_tiny(folder=args.start)[:2] if args.start else build_tiny(args.out)
    model.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, args.peak_lr)
    schedule = make_schedule(optimizer, args.steps)
    # One worker draws as fast as two cores train; its batches come in order, so runs repeat.
    batches = DrawnBatches(tokenizer, args.batch_size, args.seed)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=8)
    started = time.monotonic()
    for step, (drawn_NHWC, token_NL) in zip(range(1, args.steps + 1), loader, strict=False):
        loss = contrast(model, as_input(drawn_NHWC.numpy(), preprocess_cfg), token_NL)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            # CLIP's own bound: no logit is scaled by more than 100.
            model.logit_scale.clamp_(0, math.log(100))
        if step % 50 == 0:
            logger.info("step %d loss %.3f %.0f s", step, loss.item(), time.monotonic() - started)
        if step % args.save_every == 0 or step == args.steps:
            facts = {"steps": step, "batch_size": args.batch_size, "seed": args.seed}
            save_and_measure(model, args.out, facts)


def main() -> None:
    """Read the flags and train."""
    parser = argparse.ArgumentParser(description="Train the built-in tiny CLIP.")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--peak-lr", type=float, default=2e-3, help="learning rate at its highest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--start", type=Path, help="folder of an earlier run to go on from")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
