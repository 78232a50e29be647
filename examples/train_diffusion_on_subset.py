"""What Stable Diffusion did with LAION-Aesthetics, in small: text to image, trained on a subset.

    laionkit demo demo
    laionkit subset demo --name pictures --where "punsafe < 0.2"
    python examples/train_diffusion_on_subset.py demo pictures --out samples

trains a U-Net of about a million weights on 32-pixel pictures for some minutes of two CPU cores
and draws samples/samples.png: what it paints for captions of the subset. The captions enter as
embeddings of the tiny CLIP's text tower. The objective is rectified flow (Liu et al., 2022), that
of Stable Diffusion 3: the net predicts the way from noise to picture; samples walk it in small
steps.

Shapes: N pictures of a batch, C channels, D dimensions of a caption's embedding.
"""

import argparse
import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from laionkit import load
from laionkit.backends.clip import load_model
from laionkit.ops.sheet import Tile, contact_sheet

EDGE_PX = 32
# Share of captions left out in training, so that guidance has something to compare with.
NO_CAPTION = 0.1
EMA = 0.995


def batches(args: argparse.Namespace) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Epoch after epoch of (pictures uint8 [N, 32, 32, 3], captions)."""

    def fit(image_HWC: np.ndarray) -> np.ndarray:
        height, width = image_HWC.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image_HWC[top : top + side, left : left + side]
        return cv2.resize(square, (EDGE_PX, EDGE_PX), interpolation=cv2.INTER_AREA)

    samples = (
        load(args.dataset, args.subset, seed=args.seed)
        .decode("rgb8")
        .to_tuple("jpg;png;webp", "txt")
        .map_tuple(fit, str)
        .batched(args.batch_size, partial=False)
    )
    while True:
        count = 0
        for batch in samples:
            count += 1
            yield batch
        if not count:
            raise SystemExit(f"subset {args.subset} has fewer than {args.batch_size} pictures")


class Block(nn.Module):
    """A residual block of two convolutions, steered by the condition."""

    def __init__(self, channels: int, out: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.steer = nn.Linear(condition, 2 * out)
        self.norm = nn.GroupNorm(8, out)
        self.second = nn.Sequential(nn.SiLU(), nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x_NCHW: Tensor, condition_ND: Tensor) -> Tensor:
        """Hidden [N, C, H, W] and condition to the next hidden."""
        scale, shift = self.steer(condition_ND)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm(self.first(x_NCHW)) * (1 + scale) + shift
        return self.skip(x_NCHW) + self.second(hidden)


class UNet(nn.Module):
    """Noisy picture [N, 3, 32, 32], time [N] and caption [N, D] to the way towards the picture."""

    def __init__(self, text_dim: int, width: int = 32, condition: int = 128) -> None:
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(64, condition), nn.SiLU(), nn.Linear(condition, condition)
        )
        self.text = nn.Linear(text_dim, condition)
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        widths = (width, 2 * width, 3 * width)
        self.down = nn.ModuleList(
            Block(a, b, condition) for a, b in zip((width, *widths), widths, strict=False)
        )
        self.middle = nn.ModuleList(Block(widths[-1], widths[-1], condition) for _ in range(2))
        self.up = nn.ModuleList(
            Block(a + b, b, condition)
            for a, b in zip((widths[-1], *widths[:0:-1]), widths[::-1], strict=True)
        )
        self.leave = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x_NCHW: Tensor, time_N: Tensor, text_ND: Tensor) -> Tensor:
        """Predict the way from noise to picture, of the picture's shape."""
        condition_ND = nn.functional.silu(self.time(waves(time_N)) + self.text(text_ND))
        hidden, kept = self.enter(x_NCHW), []
        for block in self.down:
            hidden = block(hidden, condition_ND)
            kept.append(hidden)
            hidden = nn.functional.avg_pool2d(hidden, 2)
        for block in self.middle:
            hidden = block(hidden, condition_ND)
        for block in self.up:
            hidden = nn.functional.interpolate(hidden, scale_factor=2.0)
            hidden = block(torch.cat([hidden, kept.pop()], dim=1), condition_ND)
        return self.leave(hidden)


def waves(time_N: Tensor) -> Tensor:
    """The time in [0, 1] as 64 sines and cosines, [N, 64]."""
    speed = torch.exp(torch.linspace(0, 6, 32))
    angle = time_N[:, None] * speed
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def flow_loss(net: UNet, image_NCHW: Tensor, text_ND: Tensor) -> Tensor:
    """How far the net's way from noise to picture is from the straight one, at a random time."""
    noise = torch.randn_like(image_NCHW)
    time_N = torch.sigmoid(torch.randn(len(image_NCHW)))
    share = time_N[:, None, None, None]
    with_caption = (torch.rand(len(image_NCHW), 1) >= NO_CAPTION).float()
    way = net((1 - share) * noise + share * image_NCHW, time_N, text_ND * with_caption)
    return nn.functional.mse_loss(way, image_NCHW - noise)


@torch.no_grad()
def paint(net: UNet, text_ND: Tensor, *, steps: int = 40, guidance: float = 2.0) -> np.ndarray:
    """Walk from noise to pictures uint8 [N, 32, 32, 3], guided by the captions."""
    x_NCHW = torch.randn(len(text_ND), 3, EDGE_PX, EDGE_PX)
    nothing = torch.zeros_like(text_ND)
    for step in range(steps):
        time_N = torch.full((len(text_ND),), step / steps)
        plain = net(x_NCHW, time_N, nothing)
        x_NCHW += (plain + guidance * (net(x_NCHW, time_N, text_ND) - plain)) / steps
    pixels = (x_NCHW.clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, draw samples; return the loss of the first steps and of the last."""
    torch.manual_seed(args.seed)
    clip = load_model("tiny")
    stream = batches(args)
    _, asked = next(stream)
    asked = list(dict.fromkeys(asked))[:16]
    asked_ND = torch.from_numpy(clip.encode_texts(asked))
    net = UNet(asked_ND.shape[1])
    smooth, losses = copy.deepcopy(net), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr)
    for step, (image_NHWC, captions) in zip(range(args.steps), stream, strict=False):
        image_NCHW = torch.from_numpy(image_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = flow_loss(net, image_NCHW, torch.from_numpy(clip.encode_texts(list(captions))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for slow, fast in zip(smooth.parameters(), net.parameters(), strict=True):
            slow.data.lerp_(fast.data, 1 - min(EMA, step / (step + 10)))
        losses.append(loss.item())
        if step % 50 == 0:
            logging.info("step %d: loss %.3f", step, losses[-1])
    tiles = [
        Tile(image_HWC, "", caption)
        for image_HWC, caption in zip(paint(smooth, asked_ND), asked, strict=True)
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(tiles, "Painted from captions", f"after {args.steps} steps", columns=4)
    Image.fromarray(sheet).save(args.out / "samples.png")
    torch.save(smooth.state_dict(), args.out / "unet.pt")
    window = max(1, len(losses) // 5)
    return {
        "steps": len(losses),
        "weights": sum(p.numel() for p in net.parameters()),
        "first_loss": round(float(np.mean(losses[:window])), 4),
        "last_loss": round(float(np.mean(losses[-window:])), 4),
        "samples": str(args.out / "samples.png"),
    }


def main() -> None:
    """Read the flags, train, print the outcome as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("subset")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder of the results")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(json.dumps(train(parser.parse_args())))


if __name__ == "__main__":
    main()
