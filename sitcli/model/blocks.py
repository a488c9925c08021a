"""The four block designs of DiT's section 3.2, with the official parameter names.

A block maps tokens (B, T, d) and the condition of its design to tokens of the same shape; a row of
`BLOCKS` says what that condition is, and which final layer goes with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sitcli.model.embed import Rope, in_float32

EPS = 1e-6


class Style(NamedTuple):
    """Block parts that can differ from the DiT and SiT papers, independently of each other.

    mlp: a row of MLPS; norm: a row of NORMS; qk_norm: normalise queries and keys, head by head
    (Henry et al. 2020; Yao et al. 2025), as the row qk_kind of QK_NORMS does; mlp_eps: of the norm
    before an adaLN-Zero block's MLP. The default is DiT's and SiT's.
    """

    mlp: str = "gelu"
    norm: str = "layer"
    qk_norm: bool = False
    qk_kind: str = "rms"
    mlp_eps: float = EPS


PLAIN = Style()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, T, d) scaled and shifted per sample; shift and scale are (B, d)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def layer_norm(width: int, *, affine: bool, eps: float = EPS) -> nn.Module:
    """LayerNorm, with gain and bias only where nothing modulates its output."""
    return nn.LayerNorm(width, eps=eps, elementwise_affine=affine)


def rms_norm(width: int, *, affine: bool, eps: float = EPS) -> nn.Module:
    """x / sqrt(mean x^2 + eps) times a gain, always (Zhang and Sennrich 2019; LightningDiT)."""
    return nn.RMSNorm(width, eps=eps)


class Norm(NamedTuple):
    """make(width, affine=) -> the layer; vectors(affine): how many vectors of parameters it has.

    words: its name in the description of a network, "" for the papers' own.
    """

    make: Callable[..., nn.Module]
    vectors: Callable[[bool], int]
    words: str = ""


NORMS: dict[str, Norm] = {
    "layer": Norm(layer_norm, lambda affine: 2 * affine),
    "rms": Norm(rms_norm, lambda affine: 1, "RMSNorm"),
}


class QkNorm(NamedTuple):
    """make(width) -> the layer for heads of this width; vectors: how many vectors it has.

    words: its name in the description of a network.
    """

    make: Callable[[int], nn.Module]
    vectors: int
    words: str


QK_NORMS: dict[str, QkNorm] = {
    "rms": QkNorm(partial(nn.RMSNorm, eps=EPS), 1, "QK-norm"),
    # timm's default, and so that of REPA's --qk-norm; its eps is not the blocks'.
    "layer": QkNorm(partial(nn.LayerNorm, eps=1e-5), 2, "QK-LayerNorm"),
}


def split_heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """(B, T, parts*d) -> (parts, B, heads, T, d/heads)."""
    return x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, d/heads) -> (B, T, d)."""
    return x.transpose(1, 2).flatten(2)


MOST_KEPT_SCORES = 512  # tokens; beyond, the scores of a batch do not fit in a CPU's caches


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, (B, heads, T, D) each.

    It is torch's fused kernel, except in bfloat16 on a CPU for at most MOST_KEPT_SCORES tokens:
    there the fused kernel takes twice as long as the two products. Compiled for evaluation, the
    scores are scaled instead of q, since the compiler would turn the plain formula into the fused
    kernel again.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= MOST_KEPT_SCORES:
        heads, scale = q.shape[:2], q.shape[-1] ** -0.5
        late = torch.compiler.is_compiling() and not torch.is_grad_enabled()
        q, k, v = (part.flatten(0, 1) for part in (q if late else q * scale, k, v))
        scores = torch.bmm(q, k.transpose(1, 2))
        weights = (scores * scale if late else scores).softmax(-1, dtype=torch.bfloat16)
        return torch.bmm(weights, v).unflatten(0, heads)
    return F.scaled_dot_product_attention(q, k, v)


def gelu(x: Tensor) -> Tensor:
    """The tanh-approximated GELU.

    Compiled for training it is x sigmoid(2u), which equals x (1 + tanh u) / 2: an exponential takes
    a third of the time of a tanh. Otherwise it is torch's own kernel.
    """
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        wide = x.float()
        twice_u = 2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        return (wide * torch.sigmoid(twice_u)).to(x.dtype)
    return F.gelu(x, approximate="tanh")


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection, (B, T, d) -> (B, T, d).

    qk_norm: normalise queries and keys, as the row qk_kind of QK_NORMS does; rope: turn them by
    their positions, after that.
    """

    def __init__(
        self, width: int, heads: int, *, qk_norm: bool = False, qk_kind: str = "rms"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        norm = QK_NORMS[qk_kind].make if qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(width // heads), norm(width // heads)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if rope is not None:
            q, k = rope.rotate(q), rope.rotate(k)
        return self.proj(merge_heads(attend(q, k, v)))


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
        return self.fc2(gelu(self.fc1(x)))


def swiglu_units(hidden: int) -> int:
    """Two thirds of an Mlp's hidden units."""
    return 2 * hidden // 3


class SwiGLU(nn.Module):
    """W3 (silu(a) * b), [a | b] = W12 x (Shazeer 2020), (..., d) -> (..., d).

    Its number of hidden units makes it cost as much as an Mlp with `hidden` units.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        units = swiglu_units(hidden)
        self.w12 = nn.Linear(width, 2 * units)
        self.w3 = nn.Linear(units, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class MlpKind(NamedTuple):
    """make(width, hidden) -> the layer; layers(width, hidden): (inputs, outputs) of its linear maps
    with a bias, in their order, from which its cost follows.

    words: its name in the description of a network, "" for the papers' own.
    """

    make: Callable[[int, int], nn.Module]
    layers: Callable[[int, int], tuple[tuple[int, int], ...]]
    words: str = ""


MLPS: dict[str, MlpKind] = {
    "gelu": MlpKind(Mlp, lambda width, hidden: ((width, hidden), (hidden, width))),
    "swiglu": MlpKind(
        SwiGLU,
        lambda width, hidden: (
            (width, 2 * swiglu_units(hidden)),
            (swiglu_units(hidden), width),
        ),
        "SwiGLU",
    ),
}
MLP_RATIO = 4  # hidden units of an Mlp for each channel


class AdaLNZeroBlock(nn.Module):
    """DiT's adaLN-Zero block: the condition c (B, d) sets shift, scale and gate.

    The gates begin at zero, so each block begins as the identity.
    """

    def __init__(self, width: int, heads: int, style: Style = PLAIN) -> None:
        super().__init__()
        norm = NORMS[style.norm].make
        self.norm1 = norm(width, affine=False)
        self.norm2 = norm(width, affine=False, eps=style.mlp_eps)
        self.attn = Attention(width, heads, qk_norm=style.qk_norm, qk_kind=style.qk_kind)
        self.mlp = MLPS[style.mlp].make(width, MLP_RATIO * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, rope: Rope | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class AdaLNBlock(nn.Module):
    """DiT's adaLN block: the condition c (B, d) sets shift and scale; there are no gates."""

    def __init__(self, width: int, heads: int, style: Style = PLAIN) -> None:
        super().__init__()
        norm = NORMS[style.norm].make
        self.norm1, self.norm2 = norm(width, affine=False), norm(width, affine=False)
        self.attn = Attention(width, heads, qk_norm=style.qk_norm, qk_kind=style.qk_kind)
        self.mlp = MLPS[style.mlp].make(width, MLP_RATIO * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))

    def forward(self, x: Tensor, c: Tensor, rope: Rope | None = None) -> Tensor:
        shift1, scale1, shift2, scale2 = self.adaLN_modulation(c).chunk(4, dim=1)
        x = x + self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + self.mlp(modulate(self.norm2(x), shift2, scale2))


class CrossAttentionBlock(nn.Module):
    """DiT's cross-attention block: after their own, tokens attend to the condition c (B, 2, d)."""

    def __init__(self, width: int, heads: int, style: Style = PLAIN) -> None:
        super().__init__()
        norm = NORMS[style.norm].make
        self.norm1 = norm(width, affine=True)
        self.attn = Attention(width, heads, qk_norm=style.qk_norm, qk_kind=style.qk_kind)
        self.norm2 = norm(width, affine=True)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = norm(width, affine=True)
        self.mlp = MLPS[style.mlp].make(width, MLP_RATIO * width)

    def forward(self, x: Tensor, c: Tensor, rope: Rope | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        x = x + self.cross_attn(self.norm2(x), c)
        return x + self.mlp(self.norm3(x))


class InContextBlock(nn.Module):
    """DiT's in-context block, a plain ViT block: the condition is two of its tokens (B, T+2, d)."""

    def __init__(self, width: int, heads: int, style: Style = PLAIN) -> None:
        super().__init__()
        norm = NORMS[style.norm].make
        self.norm1 = norm(width, affine=True)
        self.attn = Attention(width, heads, qk_norm=style.qk_norm, qk_kind=style.qk_kind)
        self.norm2 = norm(width, affine=True)
        self.mlp = MLPS[style.mlp].make(width, MLP_RATIO * width)

    def forward(self, x: Tensor, c: None, rope: Rope | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class Modulation(nn.Module):
    """The modulation of several blocks by one product, (B, d) -> (B, sum of their vectors).

    layers: the blocks' own, in their order. It runs in float32: the product is small, and its
    rounding would be a fifth to a third of what bfloat16 changes in a sample.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]))
        self.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]))

    @in_float32
    def forward(self, c: Tensor) -> Tensor:
        return F.linear(F.silu(c), self.weight, self.bias)


class FinalLayer(nn.Module):
    """Modulated norm and the projection to patches, (B, T, d) -> (B, T, p*p*Cout)."""

    def __init__(self, width: int, patch: int, out_channels: int, norm: str = "layer") -> None:
        super().__init__()
        self.norm_final = NORMS[norm].make(width, affine=False)
        self.linear = nn.Linear(width, patch * patch * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    @in_float32
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PlainFinalLayer(nn.Module):
    """Affine norm and the projection, for the designs whose blocks modulate nothing."""

    def __init__(self, width: int, patch: int, out_channels: int, norm: str = "layer") -> None:
        super().__init__()
        self.norm_final = NORMS[norm].make(width, affine=True)
        self.linear = nn.Linear(width, patch * patch * out_channels)

    @in_float32
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

    block: Callable[[int, int, Style], nn.Module]
    final: Callable[[int, int, int, str], nn.Module]
    condition: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
    vectors: int = 0  #        of modulation, in each block
    final_vectors: int = 0  #  of modulation, in the final layer
    norms: int = 2  #          in each block
    affine: bool = False  #    whether the norms, the final layer's too, have gain and bias
    appended: int = 0  #       tokens beside those of the image
    context: int = 0  #        tokens that cross-attention reads


BLOCKS: dict[str, Design] = {
    "adaln-zero": Design(AdaLNZeroBlock, FinalLayer, add, vectors=6, final_vectors=2),
    "adaln": Design(AdaLNBlock, FinalLayer, add, vectors=4, final_vectors=2),
    "cross-attention": Design(
        CrossAttentionBlock, PlainFinalLayer, pair, norms=3, affine=True, context=2
    ),
    "in-context": Design(InContextBlock, PlainFinalLayer, append, affine=True, appended=2),
}
