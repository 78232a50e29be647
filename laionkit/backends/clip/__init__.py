"""CLIP models of open_clip: any architecture and weights, and the built-in `tiny`.

Importing this package does not import torch: the preprocessing here is for processes that only
decode pictures.
"""

from typing import TYPE_CHECKING

from laionkit.backends.clip.preprocess import Preprocess

if TYPE_CHECKING:
    from laionkit.backends.clip.model import ClipModel

__all__ = ["Preprocess", "load_model"]


def load_model(
    spec: str, *, device: str = "auto", precision: str = "auto", backbone_id: str | None = None
) -> "ClipModel":
    """Load a model ready to embed.

    `spec`: ``NAME/TAG``, ``NAME/WEIGHTS_FILE``, ``hf-hub:OWNER/REPO``, ``local-dir:FOLDER`` or
    ``tiny``. `device`: auto, cuda, mps, cpu. `precision`: auto, fp32, bf16, fp16. `backbone_id`
    declares whose embedding unknown weights make (``openai/ViT-L-14``). Raises ConfigError for
    a wrong name and InputError for weights that are missing, broken or out of reach.
    """
    from laionkit.backends.clip.device import choose_device, choose_precision
    from laionkit.backends.clip.loading import load
    from laionkit.backends.clip.model import ClipModel

    where = choose_device(device)
    return ClipModel(load(spec, backbone_id), where, choose_precision(precision, where))
