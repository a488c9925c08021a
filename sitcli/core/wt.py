"""Diffusion coefficients w_t of the reverse SDE (SiT section 3.4 and Table 2), in paper time.

The official code's time is 1 - t, and it writes D = w/2: its SDE has the drift v + D score and the
noise sqrt(2 D) dW. So its ``--diffusion-form FORM --diffusion-norm N`` is here

    sigma, linear, constant    --wt of the same name, --wt-scale 2N
    increasing-decreasing      --wt sin2 --wt-scale 2N
    SBDM                       --wt kl --wt-scale N
    decreasing                 --wt decreasing --wt-scale 1 for N = 1

SBDM's D is beta_t / 2 on vp and lambda_t sigma on every path, half of w_KL. decreasing is
D = (1 - N cos(pi t))^2 / 4, whose norm is inside the square: for another N than 1 no --wt-scale
gives it. REPA's SDE has w_t = 2 t on both of its paths: ``--wt linear --wt-scale 2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    """w_KL sqrt(L_t / (L_t + 2 eta w_KL^2)), written so that it is sqrt(L_1 / 2 eta) at t = 1.

    loss: L_t = E|v_theta - x'_t|^2 / (C h w), the velocity loss at t as training measures it,
    whatever the network predicts. It includes what no network can remove, the variance of x'_t
    given x_t, and so is not the distance from the true velocity.
    """
    inverse = path.alpha / (2 * path.W * path.sigma)  # 1 / w_KL
    return (loss / (loss * inverse**2 + 2 * eta)).sqrt()


class Coefficient(NamedTuple):
    """w(t, path) -> w_t, t and path broadcast alike.

    needs_loss: w takes the model's velocity loss at t and eta as well, which `wt_of` binds.
    infinite_at_noise: w_t is infinite where alpha is 0, so the SDE begins below t = 1.
    vanishes_at_data: w_t is 0 at t = 0. If not, w_t times the score diverges there, and a last step
    of the SDE's own drift (`--last-step mean`) shrinks the result: 8% of the standard deviation of
    Gaussian data of 0.5, from t = 0.04 on linear.
    """

    w: Callable[..., Tensor]
    needs_loss: bool = False
    infinite_at_noise: bool = False
    vanishes_at_data: bool = True


WT: dict[str, Coefficient] = {
    "kl": Coefficient(kl, infinite_at_noise=True),
    "kl-eta": Coefficient(kl_eta, needs_loss=True),
    "sigma": Coefficient(lambda t, path: path.sigma),
    "sin2": Coefficient(lambda t, path: torch.sin(math.pi * t) ** 2),
    "linear": Coefficient(lambda t, path: t),
    "constant": Coefficient(lambda t, path: torch.ones_like(t), vanishes_at_data=False),
    "decreasing": Coefficient(lambda t, path: 0.5 * (1 - torch.cos(math.pi * t)) ** 2),
}


def wt_of(
    name: str,
    *,
    scale: float = 1.0,
    eta: float = DEFAULT_ETA,
    loss_curve: LossCurve | None = None,
) -> Callable[[Tensor, Path], Tensor]:
    """The function (t, path) -> scale * w_t.

    Raises ValueError if a w_t that needs the loss has no loss_curve, or no positive eta.
    """
    w, needs_loss, *_ = WT[name]
    if not needs_loss:
        return lambda t, path: scale * w(t, path)
    if loss_curve is None:
        raise ValueError(f"{name} needs the model's velocity loss as a function of t")
    if eta <= 0:
        raise ValueError("eta must be positive")
    return lambda t, path: scale * w(t, path, loss_curve(t), eta)
