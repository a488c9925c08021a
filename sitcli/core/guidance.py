"""Classifier-free guidance around a network, and the count of its evaluations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class GuidedNetwork:
    """u + scale (c - u) with c the conditional and u the unconditional output.

    scale 1 is the conditional network itself, at one evaluation. channels: how many of the
    leading channels are guided (the published DiT and SiT figures guide 3 of 4), None for all of
    the latent's; the others, and a learned variance beyond them, are the conditional ones.
    `evaluations` counts network evaluations, sample by sample.
    """

    def __init__(
        self, network: Network, *, scale: float, channels: int | None, null_class: int
    ) -> None:
        self.network = network
        self.scale = scale
        self.channels = channels
        self.null_class = null_class
        self.evaluations = 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (B, C, h, w), t (B,), y (B,) -> (B, C_out, h, w)."""
        if self.scale == 1:
            self.evaluations += len(x)
            return self.network(x, t, y).to(x.dtype)
        self.evaluations += 2 * len(x)
        null = torch.full_like(y, self.null_class)
        both = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]))
        # The difference of two bf16 outputs would keep two digits.
        c, u = both.to(x.dtype).chunk(2)
        guided = slice(min(self.channels or x.shape[1], x.shape[1]))
        return torch.cat(
            [u[:, guided] + self.scale * (c[:, guided] - u[:, guided]), c[:, guided.stop :]], dim=1
        )
