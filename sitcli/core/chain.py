"""The discrete chain of DDPM: betas, posteriors, variances (DiT; Ho et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from sitcli.core.interpolant import Path

NUM_STEPS = 1000


def linear_betas(num_steps: int = NUM_STEPS) -> Tensor:
    """1e-4 to 0.02 in equal steps (DDPM section 4), float64."""
    return torch.linspace(1e-4, 0.02, num_steps, dtype=torch.float64)


def cosine_betas(num_steps: int = NUM_STEPS) -> Tensor:
    """abar(t) = cos^2((t + 0.008) / 1.008 pi/2), each beta at most 0.999 (Nichol and Dhariwal)."""
    t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


BETAS: dict[str, Callable[[], Tensor]] = {"linear": linear_betas, "cosine": cosine_betas}


class Moments(NamedTuple):
    """Mean and log variance of a Gaussian over the state, broadcast against it."""

    mean: Tensor
    log_variance: Tensor


class Chain:
    """The tables of a chain of S steps, all (S,) float64, and the Gaussians they define.

    timesteps: which of the full chain's steps these are, as the network is told them.
    """

    def __init__(self, betas: Tensor, timesteps: Sequence[int] | None = None) -> None:
        betas = betas.double()
        self.timesteps = tuple(range(len(betas)) if timesteps is None else timesteps)
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        variance = betas * (1 - before) / (1 - alpha_bar)
        # The first variance is 0, whose logarithm is not finite: replace it by the second.
        variance[0] = variance[1] if len(variance) > 1 else betas[0]
        tables = dict(
            betas=betas,
            alpha_bar=alpha_bar,
            alpha_bar_before=before,
            # q(x_{i-1} | x_i, x_*), DDPM eqs. 6 and 7.
            data_weight=betas * before.sqrt() / (1 - alpha_bar),
            state_weight=(1 - before) * (1 - betas).sqrt() / (1 - alpha_bar),
            posterior_variance=variance,
            # These two begin at the data, log abar = 0, so they are one longer than the others.
            log_alpha_bar=torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)]),
            slopes=_monotone_slopes(torch.log1p(-betas)),
        )
        self._tables = {torch.device("cpu"): tables}

    def __len__(self) -> int:
        return len(self.timesteps)

    def table(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A table on `device`; the first call for a device copies all tables there."""
        device = torch.device(device)
        if device not in self._tables:
            cpu, dtype = self._tables[torch.device("cpu")], torch.float64
            if device.type == "mps":
                dtype = torch.float32  # all it has
            self._tables[device] = {key: values.to(device, dtype) for key, values in cpu.items()}
        return self._tables[device][name]

    def respaced(self, steps: int) -> Chain:
        """The chain over `steps` of these, equally spaced with both ends (rounded to steps).

        The spacing is summed up as in ADM's code, since its rounding decides some of the steps.
        Raises ValueError for more steps than there are.
        """
        if steps > len(self):
            raise ValueError(f"the chain has {len(self)} steps, not {steps}")
        last = len(self) - 1
        strides = repeat(last / (steps - 1), steps - 1) if steps > 1 else ()
        kept = [round(k) for k in accumulate(strides, initial=0.0)] if steps > 1 else [last]
        alpha_bar = self.table("alpha_bar")[kept]
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        return Chain(1 - alpha_bar / before, [self.timesteps[k] for k in kept])

    def posterior(self, x_star: Tensor, x: Tensor, i: Tensor) -> Moments:
        """q(x_{i-1} | x_i, x_*) for steps i (B,); at i = 0 the mean is x_* itself."""
        mean = self.table_at("data_weight", i, x) * x_star + self.table_at("state_weight", i, x) * x
        return Moments(mean, self.table_at("posterior_variance", i, x).log())

    def table_at(self, table: str, i: Tensor, x: Tensor) -> Tensor:
        """The table's entries for steps i (B,), in x's dtype and shaped to broadcast with it."""
        values = self.table(table, x.device)[i.to(x.device)].to(x.dtype)
        return values.view(-1, *(1,) * (x.ndim - 1))

    def path(self, t: Tensor) -> Path:
        """The chain as a path in continuous time: log abar is a cubic between the steps.

        Its slope is continuous, as solvers like it: beta(t) = -d log abar / dt, and
        alpha' = -beta alpha / 2 as on vp.
        """
        steps, log_alpha_bar = len(self), self.table("log_alpha_bar", t.device)
        slopes = self.table("slopes", t.device)
        place = t.to(log_alpha_bar.dtype) * steps
        # Times on the grid are found exactly, whatever rounding did to them.
        nearest = place.round()
        place = torch.where((place - nearest).abs() < 1e-3, nearest, place).clamp(0, steps)
        piece = (place.ceil().long() - 1).clamp(min=0)
        low, begin, end = log_alpha_bar[piece], slopes[piece], slopes[piece + 1]
        rise, u = log_alpha_bar[piece + 1] - low, place - piece
        # Hermite's cubic, by powers of u.
        square, cube = 3 * rise - 2 * begin - end, begin + end - 2 * rise
        log = low + u * (begin + u * (square + u * cube))
        d_log = begin + u * (2 * square + 3 * u * cube)
        alpha, sigma = (log / 2).exp(), (-torch.expm1(log)).sqrt()
        d_alpha = steps / 2 * d_log * alpha
        return Path(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)


def _monotone_slopes(rises: Tensor) -> Tensor:
    """Slopes (S+1,) at the ends of S equal pieces that fall by `rises`, for a cubic that never
    turns: harmonic means of neighbours (Fritsch and Butland 1984)."""
    inner = 2 * rises[1:] * rises[:-1] / (rises[1:] + rises[:-1])
    return torch.cat([rises[:1], inner, rises[-1:]])


def _learned_range(chain: Chain, i: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Between the posterior's and beta, as v in [-1, 1] says (Nichol and Dhariwal eq. 15)."""
    low, high = (chain.table_at(name, i, x).log() for name in ("posterior_variance", "betas"))
    share = (v.to(x.dtype) + 1) / 2
    return share * high + (1 - share) * low


def _fixed_large(chain: Chain, i: Tensor, x: Tensor, v: Tensor) -> Tensor:
    # At i = 0 beta would be far too small for the last step's likelihood.
    last = chain.table_at("posterior_variance", i, x)
    first = (i == 0).to(x.device).view(last.shape)
    return torch.where(first, last, chain.table_at("betas", i, x)).log()


class Variance(NamedTuple):
    """log_variance(chain, i, x, v) of the reverse step, v the network's channels beyond the
    latent's; learned: whether it reads v, which the network then has and the loss teaches."""

    log_variance: Callable[[Chain, Tensor, Tensor, Tensor], Tensor]
    learned: bool = False


VARIANCES: dict[str, Variance] = {
    "learned-range": Variance(_learned_range, learned=True),
    "fixed-small": Variance(
        lambda chain, i, x, v: chain.table_at("posterior_variance", i, x).log()
    ),
    "fixed-large": Variance(_fixed_large),
}


def gaussian_kl(p: Moments, q: Moments) -> Tensor:
    """KL(p || q) of diagonal Gaussians, element by element, in nats."""
    difference = p.log_variance - q.log_variance
    squares = (p.mean - q.mean) ** 2 * (-q.log_variance).exp()
    return 0.5 * (difference.exp() - 1 - difference + squares)


def discretised_gaussian_nll(x: Tensor, p: Moments, *, tails: bool = True) -> Tensor:
    """-log of p's mass on x's bin of width 2/255 (DDPM eq. 13), element by element, in nats.

    tails: the bins of -1 and 1, and of all beyond them, reach to infinity, as bytes need it; DiT
    trains on latents so too. Without, every bin is a bin.
    """
    inverse_std = (-0.5 * p.log_variance).exp()
    # Beyond 1000 standard deviations float32 has no gradients left, only infinities.
    upper, lower = (
        ((x - p.mean + edge) * inverse_std).clamp(-1e3, 1e3) for edge in (1 / 255, -1 / 255)
    )
    outside = (x.abs() > 0.999) & tails
    # A narrow bin far out: the difference of two values near 1 keeps no digit, so both are
    # reflected to the lower tail.
    flip = (lower > 0) & ~outside
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    inside = log_upper + torch.log1p(-(log_lower - log_upper).exp().clamp(max=1 - 1e-6))
    beyond = torch.where(x < 0, log_upper, torch.special.log_ndtr(-lower))
    return -torch.where(outside, beyond, inside)
