"""The four block designs of DiT's section 3.2, with the official parameter names.

A block maps tokens (B, T, d) and the condition of its design to tokens of the same shape; a row of
`BLOCKS` says what that condition is, and which final layer goes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, T, d) scaled and shifted per sample; shift and scale are (B, d)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last axis without affine parameters, eps 1e-6."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def split_heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """(B, T, parts*d) -> (parts, B, heads, T, d/heads)."""
    return x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, d/heads) -> (B, T, d)."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection, (B, T, d) -> (B, T, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class CrossAttention(nn.Module):
    """Multi-head attention of x (B, T, d) to a context (B, S, d) of the same width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        (q,) = split_heads(self.q(x), 1, self.heads)
        k, v = split_heads(self.kv(context), 2, self.heads)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class Mlp(nn.Module):
    """Two layers with a tanh-approximated GELU, (..., d) -> (..., d)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class AdaLNZeroBlock(nn.Module):
    """DiT's adaLN-Zero block: the condition c (B, d) sets shift, scale and gate.

    The gates begin at zero, so each block begins as the identity.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(layer_norm(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(layer_norm(x), shift2, scale2))


class AdaLNBlock(nn.Module):
    """DiT's adaLN block: the condition c (B, d) sets shift and scale; there are no gates."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, shift2, scale2 = self.adaLN_modulation(c).chunk(4, dim=1)
        x = x + self.attn(modulate(layer_norm(x), shift1, scale1))
        return x + self.mlp(modulate(layer_norm(x), shift2, scale2))


class CrossAttentionBlock(nn.Module):
    """DiT's cross-attention block: after their own, tokens attend to the condition c (B, 2, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.cross_attn(self.norm2(x), c)
        return x + self.mlp(self.norm3(x))


class InContextBlock(nn.Module):
    """DiT's in-context block, a plain ViT block: the condition is two of its tokens (B, T+2, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, c: None) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Modulated LayerNorm and the projection to patches, (B, T, d) -> (B, T, p*p*Cout)."""

    def __init__(self, width: int, patch: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, patch * patch * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(layer_norm(x), shift, scale))


class PlainFinalLayer(nn.Module):
    """Affine LayerNorm and the projection, for the designs whose blocks modulate nothing."""

    def __init__(self, width: int, patch: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=EPS)
        self.linear = nn.Linear(width, patch * patch * out_channels)

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        return self.linear(self.norm_final(x))


def add(tokens: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The condition is the sum of the embeddings t and y, (B, d)."""
    return tokens, t + y


def pair(tokens: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The condition is the sequence of the two embeddings, (B, 2, d)."""
    return tokens, torch.stack([t, y], dim=1)


def append(tokens: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, None]:
    """The two embeddings become the last two tokens, (B, T+2, d); there is no other condition."""
    return torch.cat([tokens, t[:, None], y[:, None]], dim=1), None


class Design(NamedTuple):
    """How a transformer is conditioned; the numbers are what `count_costs` charges for it.

    condition: tokens (B, T, d) and the embeddings of t and y, both (B, d) -> the tokens that go
    through the blocks, first those of the image, and what every layer gets beside them.
    """

    block: Callable[[int, int], nn.Module]
    final: Callable[[int, int, int], nn.Module]
    condition: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
    vectors: int = 0  #        of modulation, in each block
    final_vectors: int = 0  #  of modulation, in the final layer
    norms: int = 0  #          with affine parameters, in each block
    final_norms: int = 0  #    with affine parameters, in the final layer
    appended: int = 0  #       tokens beside those of the image
    context: int = 0  #        tokens that cross-attention reads


BLOCKS: dict[str, Design] = {
    "adaln-zero": Design(AdaLNZeroBlock, FinalLayer, add, vectors=6, final_vectors=2),
    "adaln": Design(AdaLNBlock, FinalLayer, add, vectors=4, final_vectors=2),
    "cross-attention": Design(
        CrossAttentionBlock, PlainFinalLayer, pair, norms=3, final_norms=1, context=2
    ),
    "in-context": Design(
        InContextBlock, PlainFinalLayer, append, norms=2, final_norms=1, appended=2
    ),
}
