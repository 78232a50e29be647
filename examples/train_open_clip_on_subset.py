"""Does a CLIP model train on a subset that laionkit wrote? Watch its loss fall.

    laionkit demo demo
    python examples/train_open_clip_on_subset.py demo best --steps 200

streams the subset `best` of the dataset `demo` through laionkit.load, a webdataset pipeline, and
trains the tiny open_clip model from fresh weights with open_clip's contrastive loss. It works on
subsets written as shards and as views alike.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import torch

from laionkit import load
from laionkit.backends.tiny import FOLDER, as_input, build_tiny
from laionkit.backends.tiny.tokenizer import TinyTokenizer

EDGE_PX = 64


def batches(args: argparse.Namespace) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Epoch after epoch of (pictures uint8 [N, 64, 64, 3], captions)."""

    def fit(image_HWC: np.ndarray) -> np.ndarray:
        return cv2.resize(image_HWC, (EDGE_PX, EDGE_PX), interpolation=cv2.INTER_AREA)

    samples = (
        load(args.dataset, args.subset, seed=args.seed)
        .decode("rgb8")
        .to_tuple("jpg;png;webp", "txt")
        .map_tuple(fit, str)
        .batched(args.batch_size, partial=False)
    )
    while True:
        yield from samples


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train for a number of steps; return the loss of the first steps and of the last."""
    torch.manual_seed(args.seed)
    model, preprocess = build_tiny()
    tokenizer = TinyTokenizer.load(FOLDER / "tokenizer.json")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    loss_of, losses = open_clip.ClipLoss(), []
    model.train()
    for step, (image_NHWC, captions) in zip(range(args.steps), batches(args), strict=False):
        image_ND = model.encode_image(as_input(image_NHWC, preprocess), normalize=True)
        text_ND = model.encode_text(tokenizer(list(captions)), normalize=True)
        loss = loss_of(image_ND, text_ND, model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0:
            logging.info("step %d: loss %.3f", step, losses[-1])
    if args.out:
        torch.save(model.state_dict(), args.out)
    window = max(1, len(losses) // 5)
    return {
        "steps": len(losses),
        "first_loss": round(float(np.mean(losses[:window])), 4),
        "last_loss": round(float(np.mean(losses[-window:])), 4),
    }


def main() -> None:
    """Read the flags, train, print the outcome as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("subset")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="where to save the weights")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(json.dumps(train(parser.parse_args())))


if __name__ == "__main__":
    main()
