"""Diffusion coefficients w_t of the reverse SDE (SiT section 3.4 and Table 2), in paper time.

The official code writes D = w/2: its ``--diffusion-form sigma --diffusion-norm 1`` is our
``--wt sigma --wt-scale 2``, and its SBDM form is our ``kl``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sitcli.core.interpolant import Path

DEFAULT_ETA = 0.1  # of kl-eta; the paper never gives its value


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The velocity loss L_t of a trained model, means in equal bins of t over [0, 1].

    The mean is per element of the latent; NaN bins (never visited) take their neighbour's value.
    """

    values: tuple[float, ...]

    @classmethod
    def from_bins(cls, sums: Sequence[float], counts: Sequence[float]) -> LossCurve:
        """Raises ValueError when every bin is empty."""
        filled = [(i, s / c) for i, (s, c) in enumerate(zip(sums, counts, strict=True)) if c > 0]
        if not filled:
            raise ValueError("no loss was measured")
        nearest = [min(filled, key=lambda bin: abs(bin[0] - i))[1] for i in range(len(sums))]
        return cls(values=tuple(nearest))

    def __call__(self, t: Tensor) -> Tensor:
        """L_t at times t, linear between the bins' centres."""
        values = t.new_tensor(self.values)
        position = (t * len(values) - 0.5).clamp(0, len(values) - 1)
        low = position.floor().long().clamp(max=max(len(values) - 2, 0))
        high = (low + 1).clamp(max=len(values) - 1)
        return torch.lerp(values[low], values[high], position - low)


def kl(t: Tensor, path: Path) -> Tensor:
    """w_KL = 2 (sigma' sigma - alpha' sigma^2 / alpha) = 2 lambda_t sigma: tightest KL bound."""
    return 2 * path.lambda_t * path.sigma


def kl_eta(t: Tensor, path: Path, loss: Tensor, eta: float) -> Tensor:
    """w_KL sqrt(L_t / (L_t + 2 eta w_KL^2)), written so that it is sqrt(L_1 / 2 eta) at t = 1."""
    inverse = path.alpha / (2 * path.W * path.sigma)  # 1 / w_KL
    return (loss / (loss * inverse**2 + 2 * eta)).sqrt()


# (t, path) -> w_t, both broadcast; kl-eta needs the model's loss as well and is bound by `wt_of`.
WT: dict[str, Callable] = {
    "kl": kl,
    "kl-eta": kl_eta,
    "sigma": lambda t, path: path.sigma,
    "sin2": lambda t, path: torch.sin(math.pi * t) ** 2,
    "linear": lambda t, path: t,
    "constant": lambda t, path: torch.ones_like(t),
    "decreasing": lambda t, path: 0.5 * (1 - torch.cos(math.pi * t)) ** 2,
}


def wt_of(
    name: str,
    *,
    scale: float = 1.0,
    eta: float = DEFAULT_ETA,
    loss_curve: LossCurve | None = None,
) -> Callable[[Tensor, Path], Tensor]:
    """The function (t, path) -> scale * w_t. Raises ValueError if kl-eta has no loss curve."""
    if name != "kl-eta":
        return lambda t, path: scale * WT[name](t, path)
    if loss_curve is None:
        raise ValueError("kl-eta needs the model's velocity loss as a function of t")
    if eta <= 0:
        raise ValueError("eta must be positive")
    return lambda t, path: scale * kl_eta(t, path, loss_curve(t), eta)
