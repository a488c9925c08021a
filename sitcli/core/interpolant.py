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


INTERPOLANTS: dict[str, Callable[[Tensor], Path]] = {"linear": linear, "gvp": gvp, "vp": vp}


def path_at(interpolant: str | Callable[[Tensor], Path], t: Tensor, x: Tensor) -> Path:
    """The path at times t (B,), broadcast against x (B, ...): the one place that broadcasts.

    interpolant: a row of INTERPOLANTS, or the path itself as a function of t (B,) float64.
    Computed in float64, since 1 - alpha^2 and the derivatives cancel near the ends, and returned
    in x's dtype (float32 at least) on its device.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = t.double() if t.device.type != "mps" else t.float()
    shape = (-1,) + (1,) * (x.ndim - 1)
    function = interpolant if callable(interpolant) else INTERPOLANTS[interpolant]
    return Path(*(part.to(x.device, dtype).view(shape) for part in function(wide)))


class Interval(NamedTuple):
    """Where integration starts (near noise) and ends (near data).

    jump: the velocity cannot be evaluated at the end; the last step goes to the posterior mean
    instead, as the last step of DDIM does.
    """

    start: float
    end: float
    jump: bool = False


def train_interval(interpolant: str, prediction: str, loss_weight: str) -> tuple[float, float]:
    """Times training draws from, uniformly (SiT section 3 and Table 10).

    vp starts at 1e-5, where sigma' is finite; on linear and gvp only the plain velocity loss has
    no division by alpha or sigma, everything else keeps 1e-3 from both ends.
    """
    if interpolant == "vp":
        return 1e-5, 1.0
    if prediction == "velocity" and loss_weight in ("none", "velocity"):
        return 0.0, 1.0
    return 1e-3, 1 - 1e-3


def ode_interval(interpolant: str, prediction: str) -> Interval:
    """End points of the probability-flow ODE (SiT Table 10).

    Data prediction divides by sigma, so it jumps to t = 0; score and noise divide by alpha, so
    they begin just below t = 1.
    """
    if interpolant == "vp":
        return Interval(1.0, 0.0, jump=True) if prediction == "data" else Interval(1.0, 1e-5)
    if prediction == "data":
        return Interval(1.0, 0.0, jump=True)
    return Interval(1.0 if prediction == "velocity" else 1 - 1e-5, 0.0)


def sde_interval(interpolant: str, prediction: str, wt: str, last_step_size: float) -> Interval:
    """End points of the reverse SDE before its last step (SiT Table 10).

    w_KL is infinite at t = 1 on linear and gvp and therefore begins at 1 - 1e-3 as score models
    do. With no last step the SDE stops at 1e-3, where the score is still finite.
    """
    end = last_step_size or 1e-3
    if interpolant == "vp":
        return Interval(1.0, end)
    bounded = prediction in ("velocity", "data") and wt != "kl"
    return Interval(1.0 if bounded else 1 - 1e-3, end)
