"""The built-in `tiny` CLIP: an open_clip model of a few MB for demos and tests, read offline.

Trained by examples/train_tiny_clip.py on drawn pictures; MODEL_CARD.md beside this file says what
it can and cannot do.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import set_model_preprocess_cfg
from safetensors.torch import load_file

from laionkit.backends.tiny.tokenizer import TinyTokenizer

FOLDER = Path(__file__).parent


def load_tiny(
    device: str = "cpu", folder: Path = FOLDER
) -> tuple[open_clip.CLIP, dict[str, Any], TinyTokenizer]:
    """Load (model, preprocess_cfg, tokenizer) in float32 and eval mode, without network.

    `preprocess_cfg` holds the fields of open_clip's `PreprocessCfg`. `folder` may be one that
    examples/train_tiny_clip.py wrote.
    """
    model, preprocess_cfg = build_tiny(folder)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    tokenizer = TinyTokenizer.load(folder / "tokenizer.json")
    return model.to(device).eval(), preprocess_cfg, tokenizer


def build_tiny(folder: Path = FOLDER) -> tuple[open_clip.CLIP, dict[str, Any]]:
    """Build the model of `config.json` with fresh weights, and its preprocess_cfg."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = open_clip.CLIP(**config["model_cfg"])
    preprocess_cfg: dict[str, Any] = config["preprocess_cfg"]
    set_model_preprocess_cfg(model, preprocess_cfg)
    return model, preprocess_cfg


def as_input(picture_NHWC: NDArray[np.uint8], preprocess_cfg: dict[str, Any]) -> torch.Tensor:
    """Scale uint8 RGB pictures of the model's own size to its input: float32 [N, 3, H, W]."""
    mean, std = (torch.tensor(preprocess_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    pixels = torch.from_numpy(picture_NHWC).permute(0, 3, 1, 2).float()
    return (pixels / 255 - mean) / std
