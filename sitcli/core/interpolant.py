"""Interpolants x_t = alpha_t x_* + sigma_t eps between data (t=0) and noise (t=1).

SiT section 2 and Table 10, in the papers' time direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Path(NamedTuple):
    """alpha, sigma and their time derivatives, broadcast against the state they belong to."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def W(self) -> Tensor:
        """alpha sigma' - sigma alpha', positive on (0, 1): the determinant of (x_t, x'_t)."""
        return self.alpha * self.d_sigma - self.sigma * self.d_alpha

    @property
    def lambda_t(self) -> Tensor:
        """lambda_t = sigma' - alpha' sigma / alpha (SiT eq. 49): velocity error per noise error."""
        return self.W / self.alpha

    def mix(self, x_star: Tensor, eps: Tensor) -> Tensor:
        """x_t."""
        return self.alpha * x_star + self.sigma * eps

    def velocity(self, x_star: Tensor, eps: Tensor) -> Tensor:
        """d x_t / dt for a given pair (SiT eq. 4)."""
        return self.d_alpha * x_star + self.d_sigma * eps


def linear(t: Tensor) -> Path:
    """alpha = 1 - t, sigma = t."""
    return Path(1 - t, t, -torch.ones_like(t), torch.ones_like(t))


def gvp(t: Tensor) -> Path:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    half_pi = math.pi / 2
    # cos is written as a sine so that alpha is exactly 0 at t = 1.
    alpha, sigma = torch.sin(half_pi * (1 - t)), torch.sin(half_pi * t)
    return Path(alpha, sigma, -half_pi * sigma, half_pi * alpha)


BETA_MIN, BETA_MAX = 0.1, 20.0


def beta(t: Tensor) -> Tensor:
    """beta_t of the variance-preserving SDE (Song et al. 2021): 0.1 + 19.9 t."""
    return BETA_MIN + (BETA_MAX - BETA_MIN) * t


def vp(t: Tensor) -> Path:
    """alpha = exp(-1/2 int_0^t beta), sigma = sqrt(1 - alpha^2); sigma' diverges at t = 0."""
    log_alpha = -0.5 * (BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2)
    alpha = log_alpha.exp()
    sigma = (-torch.expm1(2 * log_alpha)).sqrt()
    d_alpha = -0.5 * beta(t) * alpha
    return Path(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)


class Interpolant(NamedTuple):
    """A path and what its ends are like, from which all intervals follow (`core.intervals`).

    first_time: the first time at which all derivatives are finite; 0 where they are at the data.
    ends_in_noise: whether alpha is 0 at t = 1, so that nothing may divide by it there.
    """

    path: Callable[[Tensor], Path]
    first_time: float = 0.0
    ends_in_noise: bool = True


INTERPOLANTS: dict[str, Interpolant] = {
    "linear": Interpolant(linear),
    "gvp": Interpolant(gvp),
    "vp": Interpolant(vp, first_time=1e-5, ends_in_noise=False),
}


def path_at(interpolant: str | Callable[[Tensor], Path], t: Tensor, x: Tensor) -> Path:
    """The path at times t (B,), broadcast against x (B, ...): the one place that broadcasts.

    interpolant: a row of INTERPOLANTS, or the path itself as a function of t (B,) float64.
    Computed in float64, since 1 - alpha^2 and the derivatives cancel near the ends, and returned
    in x's dtype (float32 at least) on its device.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = t.double() if t.device.type != "mps" else t.float()
    shape = (-1,) + (1,) * (x.ndim - 1)
    function = interpolant if callable(interpolant) else INTERPOLANTS[interpolant].path
    return Path(*(part.to(x.device, dtype).view(shape) for part in function(wide)))
