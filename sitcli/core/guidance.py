"""Guidance of a network away from a weaker one, and the count of its evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sitcli.core.prediction import Network

# (x, t, y) -> the network's output and its auxiliary head's, from one evaluation.
TwoHeaded = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """The kinds of guidance and where they act. A scale of 1 is no guidance and costs nothing.

    scale: of classifier-free guidance (Ho and Salimans 2022), away from the unconditional output
    (label null_class); guide, guide_scale: autoguidance, away from a weaker network (Karras et al.
    2024); internal_scale: away from the network's own auxiliary head (Zhou et al. 2025), which
    costs no evaluation. Each gives weak + scale (c - weak), c the conditional output; with several
    kinds their differences to c add up.

    channels: how many of the leading channels are guided (the published DiT and SiT figures guide
    3 of 4), None for all of the latent's; the others, and a learned variance beyond them, are the
    conditional ones. interval: times t within which classifier-free guidance acts, both included
    (Kynkaanniemi et al. 2024); outside it the unconditional output is not evaluated. time_of: from
    what the network is fed to t.
    """

    null_class: int
    scale: float = 1.0
    channels: int | None = None
    interval: tuple[float, float] | None = None
    guide: Network | None = None
    guide_scale: float = 1.0
    internal_scale: float = 1.0
    time_of: Callable[[Tensor], Tensor] = lambda t: t


class GuidedNetwork:
    """A network under `Guidance`; two_headed: the same network, for internal guidance alone.

    `evaluations` counts the network evaluations of each sample, also those of a guide; `saved`
    counts the evaluations that the interval left out.
    """

    def __init__(
        self, network: Network, guidance: Guidance, *, two_headed: TwoHeaded | None = None
    ) -> None:
        self.network = network
        self.two_headed = two_headed
        self.guidance = guidance
        self.evaluations = 0
        self.saved = 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (B, C, h, w), t (B,), y (B,) -> (B, C_out, h, w)."""
        g = self.guidance
        rows = self._guided_rows(t)
        c, u, aux = self._evaluate(x, t, y, rows)
        guided = slice(min(g.channels or x.shape[1], x.shape[1]))
        own, result = c[:, guided], c[:, guided]
        if len(rows):
            result = result.clone()
            result[rows] = u[:, guided] + g.scale * (own[rows] - u[:, guided])
        if g.guide_scale != 1:
            self.evaluations += len(x)
            weak = g.guide(x, t, y).to(x.dtype)[:, guided]
            result = weak + g.guide_scale * (own - weak) + (result - own)
        if aux is not None:
            weak = aux[:, guided]
            result = weak + g.internal_scale * (own - weak) + (result - own)
        return torch.cat([result, c[:, guided.stop :]], dim=1)

    def _guided_rows(self, t: Tensor) -> Tensor:
        """The samples, (b,), whose unconditional output is needed at network times t."""
        g = self.guidance
        if g.scale == 1:
            return torch.empty(0, dtype=torch.long)
        everyone = torch.arange(len(t), device=t.device)
        if g.interval is None:
            return everyone
        low, high = g.interval
        # On the grid a float32 time may lie a rounding error beyond its own float64 bound.
        time = g.time_of(t.double() if t.device.type != "mps" else t)
        rows = everyone[(time >= low - 1e-6) & (time <= high + 1e-6)]
        self.saved += len(t) - len(rows)
        return rows

    def _evaluate(
        self, x: Tensor, t: Tensor, y: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Conditional outputs, unconditional ones of `rows`, the auxiliary head's, in x's dtype."""
        self.evaluations += len(x) + len(rows)
        if len(rows):
            null = torch.full_like(y[rows], self.guidance.null_class)
            inputs = torch.cat([x, x[rows]]), torch.cat([t, t[rows]]), torch.cat([y, null])
        else:
            inputs = x, t, y
        aux = None
        if self.guidance.internal_scale != 1:
            output, aux = self.two_headed(*inputs)
            aux = aux[: len(x)].to(x.dtype)
        else:
            output = self.network(*inputs)
        # The difference of two bf16 outputs would keep two digits.
        output = output.to(x.dtype)
        return output[: len(x)], output[len(x) :], aux
