"""Transformer blocks with their weights laid out for oneDNN, for long runs on a CPU.

Torch multiplies fp32 matrices with MKL, which has no AVX-512 kernels for AMD's processors, and
lays bf16 weights out anew at every call. Measured on one Zen 4 core, ViT-B/32's matrices in fp32:
90 to 96 GFLOP/s with MKL, 104 to 111 with oneDNN and packed weights. The same sums in another
order: embeddings differ in the last bits.
"""

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


def pack(module: nn.Module) -> None:
    """Pack the attention and the MLP of every plain open_clip block, in place and for good.

    The module can then neither be moved nor be brought to another precision. Blocks of other
    kinds (timm's, Hugging Face's, cross-attention) stay as they are.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for block in module.modules():
        if type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv"):
            attention, mlp = block.attn, block.mlp
            assert isinstance(mlp, nn.Module)
            if isinstance(attention, nn.MultiheadAttention) and _is_plain(attention):
                block.attn = PackedAttention(attention)
            for name, layer in mlp.named_children():
                if type(layer) is nn.Linear:
                    setattr(mlp, name, PackedLinear(layer.weight, layer.bias))


class PackedLinear(nn.Module):
    """What ``nn.Linear`` computes."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Lay a weight [O, I] out for oneDNN."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., I] to [..., O]."""
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return y


class PackedAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes of one sequence with itself, or of some of it."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Take over the weights of `attention`."""
        super().__init__()
        self.num_heads = attention.num_heads
        width, weight, bias = attention.embed_dim, attention.in_proj_weight, attention.in_proj_bias
        assert weight is not None
        self.q = PackedLinear(weight[:width], None if bias is None else bias[:width])
        self.kv = PackedLinear(weight[width:], None if bias is None else bias[width:])
        self.out = PackedLinear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        x: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Let the tokens of `x` [N, Q, D] attend to those of `key` [N, T, D], which is `value`."""
        (batch, asked, width), length = x.shape, key.shape[1]
        heads, part = self.num_heads, width // self.num_heads
        q = self.q(x).view(batch, asked, heads, part).transpose(1, 2)
        k, v = self.kv(key).view(batch, length, 2, heads, part).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.dim() == 3:  # one for each sample and head
            attn_mask = attn_mask.view(batch, heads, asked, length)
        y = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out(y.transpose(1, 2).reshape(batch, asked, width)), None


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    return (
        attention.batch_first
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )
