"""The watermark model of LAION-5B: an image head, run on pixels in embed's pass.

Source: LAION-AI/LAION-5B-WatermarkDetection, example_use.py. EfficientNet-B3 whose classifier is
1536→625→256→2 with ReLU; pictures squashed to 256×256 (bilinear), ImageNet's mean and deviation;
softmax, class 0 is "watermark". Its weights are not published under a stable address with a
known hash: put ``watermark_model_v1.pt`` into the heads' folder, or name a file.
"""

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from laionkit.backends.clip.device import Transfers
from laionkit.backends.clip.preprocess import Preprocess
from laionkit.backends.heads.files import heads_folder
from laionkit.core.errors import InputError

NAME = "watermark"
# Pictures at once: their activations take about 1 GB in fp32, beside the CLIP model's.
AT_ONCE = 32
FILE = "watermark_model_v1.pt"
PREPROCESS = Preprocess(
    height_px=256,
    width_px=256,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bilinear",
    resize_mode="squash",
    fill_color=0,
)


def is_watermark(name: str) -> bool:
    """Tell whether a head's name means this model: ``watermark`` or ``watermark=FILE``."""
    return name.partition("=")[0] == NAME


class WatermarkHead:
    """Probability that a picture carries a watermark."""

    column = NAME
    preprocess = PREPROCESS

    def __init__(self, name: str) -> None:
        """Load the weights that `name` means, on the CPU. Raises InputError."""
        given = name.partition("=")[2]
        path = Path(given) if given else heads_folder() / FILE
        if not path.is_file():
            raise InputError(
                f"head {NAME}: its weights are not at {path}; they cannot be downloaded by name, "
                f"put {FILE} of LAION-AI/LAION-5B-WatermarkDetection there or say {NAME}=FILE"
            )
        data = path.read_bytes()
        self._sha256 = hashlib.sha256(data).hexdigest()
        self._model = _build()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of the pickle's protocol
                state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            self._model.load_state_dict(state)
        except (pickle.UnpicklingError, RuntimeError, TypeError, ValueError, EOFError) as error:
            why = " ".join(str(error).split())[:120]
            raise InputError(f"{path} is no watermark model: {why}") from error
        self.to(torch.device("cpu"))

    def to(self, device: torch.device) -> "WatermarkHead":
        """Move it to a device."""
        self._transfers = Transfers(device)
        self._model.eval().to(device)
        self._mean, self._std = (
            torch.tensor(values, device=device).mul(255).view(1, 3, 1, 1)
            for values in (PREPROCESS.mean, PREPROCESS.std)
        )
        return self

    def facts(self) -> dict[str, Any]:
        """Its name and its weights' sha256."""
        return {"head": NAME, "head_sha256": self._sha256}

    @torch.inference_mode()
    def score(self, image_NHWC: NDArray[np.uint8]) -> torch.Tensor:
        """Probability of a watermark for each preprocessed picture, fp32 on the device."""
        whole = torch.from_numpy(np.ascontiguousarray(image_NHWC))
        parts = (whole[i : i + AT_ONCE] for i in range(0, len(whole), AT_ONCE))
        return torch.cat([self._forward(self._transfers.upload(part)) for part in parts])

    def _forward(self, image_NHWC: torch.Tensor) -> torch.Tensor:
        pixels = (image_NHWC.permute(0, 3, 1, 2).float() - self._mean) / self._std
        values: torch.Tensor = self._model(pixels).softmax(dim=1)[:, 0]
        return values


def _build() -> torch.nn.Module:
    """The architecture; timm calls LAION's efficientnet_b3a efficientnet_b3 now."""
    model: torch.nn.Module = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
    model.classifier = torch.nn.Sequential(
        torch.nn.Linear(1536, 625),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(625, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 2),
    )
    return model
