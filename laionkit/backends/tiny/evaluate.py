"""How well a `tiny` CLIP knows drawn pictures; the training script and the tests measure by it.

Shapes: N pictures, H, W height and width in pixels, D embedding width, C names to choose from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray

from laionkit.backends.tiny import as_input
from laionkit.backends.tiny.tokenizer import TinyTokenizer

_BATCH = 250


@dataclass(frozen=True)
class Measured:
    """Shares of pictures, 0 to 1."""

    colour_accuracy: float
    """Nearest of "a NAME thing" is the picture's colour."""
    shape_accuracy: float
    """Nearest of "a picture of a NAME" is the picture's shape."""
    recall_at_10: float
    """The picture is among the ten nearest to its own caption."""


def evaluate(
    model: open_clip.CLIP,
    preprocess_cfg: dict[str, Any],
    tokenizer: TinyTokenizer,
    picture_NHWC: NDArray[np.uint8],
    captions: Sequence[str],
    colours: Sequence[str],
    shapes: Sequence[str],
) -> Measured:
    """Measure zero-shot colour and shape, and text-to-image recall among the pictures.

    Pictures are uint8 RGB of the model's own size; `captions`, `colours` and `shapes` name each
    of them, and the names to choose from are those that occur.
    """
    model.eval()
    image_ND = _embed_images(model, as_input(picture_NHWC, preprocess_cfg))
    text_ND = _embed_texts(model, tokenizer, captions)
    top = (text_ND @ image_ND.T).topk(min(10, len(captions))).indices
    found = (top == torch.arange(len(captions))[:, None]).any(dim=1)
    return Measured(
        colour_accuracy=_zero_shot(model, tokenizer, image_ND, "a {} thing", colours),
        shape_accuracy=_zero_shot(model, tokenizer, image_ND, "a picture of a {}", shapes),
        recall_at_10=round(float(found.float().mean()), 6),
    )


def _zero_shot(
    model: open_clip.CLIP,
    tokenizer: TinyTokenizer,
    image_ND: torch.Tensor,
    prompt: str,
    names: Sequence[str],
) -> float:
    known = sorted(set(names))
    text_CD = _embed_texts(model, tokenizer, [prompt.format(name) for name in known])
    nearest = (image_ND @ text_CD.T).argmax(dim=1).tolist()
    right: int = sum(known[i] == name for i, name in zip(nearest, names, strict=True))
    return right / len(names)


@torch.inference_mode()
def _embed_images(model: open_clip.CLIP, image_NCHW: torch.Tensor) -> torch.Tensor:
    parts = [
        model.encode_image(image_NCHW[start : start + _BATCH], normalize=True)
        for start in range(0, len(image_NCHW), _BATCH)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def _embed_texts(
    model: open_clip.CLIP, tokenizer: TinyTokenizer, texts: Sequence[str]
) -> torch.Tensor:
    return torch.cat(
        [
            model.encode_text(tokenizer(texts[start : start + _BATCH]), normalize=True)
            for start in range(0, len(texts), _BATCH)
        ]
    )
