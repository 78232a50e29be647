"""How many pictures a batch holds where the user does not say."""

import numpy as np
import torch

from laionkit.backends.clip.model import ClipModel

# Beyond 256 a GPU gains nothing on ViT-B/32 or larger; a CPU's caches like fewer.
GPU_BATCH = 256
CPU_BATCH = 64


def choose_batch(model: ClipModel) -> int:
    """The largest power of two, at most GPU_BATCH, that fits the device: tried out on a GPU."""
    if model.device.type == "cpu":
        return CPU_BATCH
    preprocess = model.preprocess
    blank = np.zeros((GPU_BATCH, preprocess.height_px, preprocess.width_px, 3), np.uint8)
    model.embed_images(blank)
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return min(GPU_BATCH, model.fits)
