"""The last block of a tower, computed for the one token that is read.

A tower's vector is read at one token: a picture's class token, a caption's end. What the last
block makes of the others nobody sees; of them only keys and values are needed, a sixth of its
products. For ViT-B/32 that takes 7 % off both towers and changes no sum.

Shapes: N samples, T tokens, D dimensions, H heads.
"""

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import nn


def read_class_token_alone(visual: Any) -> None:
    """Have an image tower compute its last block for the class token alone, for good.

    Towers that read their vector elsewhere, or of other blocks than open_clip's, stay as they are.
    """
    if (
        type(visual) is VisionTransformer
        and visual.pool_type == "tok"
        and visual.attn_pool is None
        and not visual.output_tokens
        and ends_in_plain_block(visual.transformer)
    ):
        visual.transformer.resblocks[-1] = ClassTokenBlock(visual.transformer.resblocks[-1])


def ends_in_plain_block(transformer: Any) -> bool:
    """Whether a transformer's last block is one that `at_one_token` takes."""
    return (
        type(transformer) is Transformer
        and getattr(transformer, "batch_first", False)
        and type(transformer.resblocks[-1]) is ResidualAttentionBlock
    )


class ClassTokenBlock(nn.Module):
    """A block that maps [N, T, D] to its first token, [N, 1, D]."""

    def __init__(self, block: nn.Module) -> None:
        """Take over a plain open_clip block."""
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        """See the class; pictures have no mask."""
        at_N = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return at_one_token(self.block, x, at_N, None)[:, None]


def at_one_token(
    block: Any, x_NTD: torch.Tensor, at_N: torch.Tensor, mask_TT: torch.Tensor | None
) -> torch.Tensor:
    """What a plain block makes of the token of each sample that `at_N` names, [N, D].

    `mask_TT` is added to the attention of each token (row) to each.
    """
    row_N = torch.arange(len(x_NTD), device=x_NTD.device)
    seen_NTD = block.ln_1(x_NTD)
    mask = None
    if mask_TT is not None:  # one for each sample and head
        heads = block.attn.num_heads
        mask = mask_TT[at_N][:, None].repeat_interleave(heads, dim=0)
    asked_N1D = seen_NTD[row_N, at_N][:, None]
    found_N1D = block.attention(asked_N1D, seen_NTD, seen_NTD, attn_mask=mask)
    x_N1D = x_NTD[row_N, at_N][:, None] + block.ls_1(found_N1D)
    x_ND: torch.Tensor = (x_N1D + block.ls_2(block.mlp(block.ln_2(x_N1D))))[:, 0]
    return x_ND
