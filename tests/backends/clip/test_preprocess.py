"""Preprocessing: what open_clip's own transforms give, pixel for pixel."""

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from laionkit.backends.clip.preprocess import Preprocess

SIZES = [(300, 200), (200, 301), (64, 64), (17, 400), (33, 20), (224, 97)]


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    small = rng.integers(0, 256, (max(2, height // 9), max(2, width // 9), 3), dtype=np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [96, (96, 64)])
def test_every_resize_mode_equals_open_clip(mode, interpolation, size):
    config = PreprocessCfg(size=size, resize_mode=mode, interpolation=interpolation, fill_color=7)
    theirs = image_transform_v2(config, is_train=False)
    ours = Preprocess.of(vars(config))
    for height, width in SIZES:
        image_HWC = picture(height, width)
        pixels = torch.from_numpy(ours(image_HWC).copy()).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (ours.mean, ours.std))
        torch.testing.assert_close((pixels - mean) / std, theirs(Image.fromarray(image_HWC)))


def test_real_photographs_meet_the_golden_tensors_of_clip_retrieval(real_data):
    folder = real_data / "clip" / "clip-retrieval-vitb32"
    golden = np.load(folder / "image_tensors_fp32.npy")
    config = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    preprocess = Preprocess.of({**vars(PreprocessCfg()), **config})
    for name, theirs in zip((folder / "names.txt").read_text().split(), golden, strict=True):
        image_HWC = np.asarray(Image.open(folder / "images" / name).convert("RGB"))
        ours = preprocess(image_HWC).transpose(2, 0, 1) / 255
        mean, std = (np.array(v).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
        difference = np.abs(ours - (theirs * std + mean)) * 255
        assert difference.max() <= 1.001
        assert difference.mean() <= 0.1
