"""A small open_clip model with seeded weights."""

import json
from pathlib import Path

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}


def write_small_clip(folder: Path, seed: int = 0, embed_dim: int = 32, **more: object) -> Path:
    """Write the model into `folder`; ``local-dir:FOLDER`` loads it. `more` goes into its config."""
    model_cfg = {**CONFIG, "embed_dim": embed_dim, **more}
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = open_clip.CLIP(**model_cfg)
    with torch.no_grad():  # the initial positions are too alike for captions to differ
        model.positional_embedding.normal_(std=0.1)
        model.token_embedding.weight.normal_(std=0.5)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
