"""Embeddings of positions, times and labels, with the official parameter names."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn


def position_embedding(width: int, rows: int, columns: int) -> Tensor:
    """Fixed 2-D sine-cosine embedding, shape (1, rows*columns, width), float32.

    The first half of the channels encodes the column, the second the row; each half is
    [sin | cos] with omega_i = 10000^(-i / (width/4)), as in MAE and DiT.
    """
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(max(rows, columns), dtype=torch.float64)[:, None] * omega
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width/2)
    column = line[None, :columns].expand(rows, columns, -1)
    row = line[:rows, None].expand(rows, columns, -1)
    return torch.cat([column, row], dim=2).reshape(1, rows * columns, width).float()


def frequencies(
    dim: int, *, max_period: float = 10000.0, last: bool = False, device: torch.device | None = None
) -> Tensor:
    """The angular frequencies of `sinusoid`, (dim // 2,), falling from 1 to about 1/max_period.

    last: to 1/max_period itself, as diffusers' default.
    """
    half = dim // 2
    rate = -math.log(max_period) / (half - 1 if last else half)
    return torch.exp(rate * torch.arange(half, device=device))


def sinusoid(t: Tensor, dim: int, *, max_period: float = 10000.0, last: bool = False) -> Tensor:
    """[cos | sin] features of t, shape (B,) -> (B, dim), float32. last: see `frequencies`."""
    omega = frequencies(dim, max_period=max_period, last=last, device=t.device)
    angles = t[:, None].float() * omega[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Rope(NamedTuple):
    """Cosines and sines of the angles that positions turn by, broadcast to (B, heads, T, D/2)."""

    cos: Tensor
    sin: Tensor

    def of(self, tokens_kept: Tensor) -> Rope:
        """The cosines and sines of the tokens `tokens_kept` (B, K) alone."""
        return Rope(*(part[0, 0][tokens_kept][:, None] for part in self))

    def rotate(self, x: Tensor) -> Tensor:
        """Turn queries or keys (B, heads, T, D): channel i together with i + D/2."""
        a, b = x.to(torch.promote_types(x.dtype, self.cos.dtype)).chunk(2, dim=-1)
        turned = a * self.cos - b * self.sin, a * self.sin + b * self.cos
        return torch.cat(turned, dim=-1).to(x.dtype)


@lru_cache(maxsize=8)
def rotary_embedding(
    head_width: int, rows: int, columns: int, appended: int, device: torch.device
) -> Rope:
    """2-D rotary embedding (Su et al. 2021, along both axes as EVA-02 and LightningDiT have it).

    A quarter of the pairs' frequencies 10000^(-i / (D/4)) turn with the row, as many with the
    column, so that a product of query and key depends on the offsets alone. `appended` tokens
    beyond the grid's are not turned. head_width D is a multiple of 4.
    """
    quarter = head_width // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = (
        torch.arange(side, dtype=torch.float64)[:, None] * omega for side in (rows, columns)
    )
    angles = torch.cat(
        [row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], dim=2
    ).reshape(rows * columns, 2 * quarter)
    angles = torch.cat([angles, angles.new_zeros(appended, 2 * quarter)])[None, None]
    return Rope(angles.cos().float().to(device), angles.sin().float().to(device))


def in_float32(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A module's forward in float32 whatever autocast says.

    It is meant for the ends of a network: a rounding there rounds the latents themselves, and the
    products there are a thousandth of all.
    """

    @functools.wraps(forward)
    def wide(self: nn.Module, x: Tensor, *more: Tensor | None) -> Tensor:
        device = x.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return forward(self, x, *more)
        with torch.autocast(device, enabled=False):
            return forward(self, *(part if part is None else part.float() for part in (x, *more)))

    return wide


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: (B, C, h, w) -> (B, T, d), rows first."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        # Blocks keep their input's layout, and a convolution's output scatters a token's numbers.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class TimestepEmbedder(nn.Module):
    """Times (B,) -> (B, d): 256 sinusoid features through a two-layer MLP.

    last: see `frequencies`.
    """

    frequency_dim = 256

    def __init__(self, width: int, *, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.mlp = nn.Sequential(
            nn.Linear(self.frequency_dim, width), nn.SiLU(), nn.Linear(width, width)
        )

    @in_float32
    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoid(t, self.frequency_dim, last=self.last))


class LabelEmbedder(nn.Module):
    """Labels (B,) int64 -> (B, d). Row num_classes of the table is the null class."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)
