"""The DiT process: a discrete chain of noising steps, its loss, its bound and its samplers.

As DiT trains and samples: Ho et al. 2020 (DDPM), Nichol and Dhariwal 2021 (learned-range variance,
respacing) and Song et al. 2021 (DDIM). Step k = 0..T-1 holds x_k = sqrt(abar_k) x_* +
sqrt(1 - abar_k) eps, and the network is fed k itself. In paper time step k is t = (k+1)/T; t = 0 is
the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from sitcli.core.flow import Flow, Loss, Network, Ode, Sde
from sitcli.core.interpolant import Interval, Path, path_at, sde_interval
from sitcli.core.prediction import PREDICTIONS
from sitcli.core.times import PLAIN, Times

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
        # The first is 0, whose logarithm is not finite: the second takes its place.
        variance[0] = variance[1] if len(variance) > 1 else betas[0]
        tables = dict(
            betas=betas,
            alpha_bar=alpha_bar,
            alpha_bar_before=before,
            # q(x_{i-1} | x_i, x_*), DDPM eqs. 6 and 7.
            data_weight=betas * before.sqrt() / (1 - alpha_bar),
            state_weight=(1 - before) * (1 - betas).sqrt() / (1 - alpha_bar),
            posterior_variance=variance,
            # From the data, log abar = 0, on: these two are one longer than the others.
            log_alpha_bar=torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)]),
            slopes=_monotone_slopes(torch.log1p(-betas)),
        )
        self._tables = {torch.device("cpu"): tables}

    def __len__(self) -> int:
        return len(self.timesteps)

    def table(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A table on `device`, where it stays once it was asked for there."""
        device = torch.device(device)
        if device not in self._tables:
            cpu, dtype = self._tables[torch.device("cpu")], torch.float64
            if device.type == "mps":
                dtype = torch.float32  # all it has
            self._tables[device] = {key: values.to(device, dtype) for key, values in cpu.items()}
        return self._tables[device][name]

    def respaced(self, steps: int) -> Chain:
        """The chain over `steps` of these, equally spaced with both ends (rounded to steps).

        The spacing is summed up as ADM does, whose rounding decides a step here and there.
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
        mean = self.at("data_weight", i, x) * x_star + self.at("state_weight", i, x) * x
        return Moments(mean, self.at("posterior_variance", i, x).log())

    def at(self, table: str, i: Tensor, x: Tensor) -> Tensor:
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


# log variance of the reverse step from (chain, i, x, v), v the network's channels beyond the
# latent's: learned-range lies between the posterior's and beta (Nichol and Dhariwal eq. 15).
def _learned_range(chain: Chain, i: Tensor, x: Tensor, v: Tensor) -> Tensor:
    low, high = (chain.at(name, i, x).log() for name in ("posterior_variance", "betas"))
    share = (v.to(x.dtype) + 1) / 2
    return share * high + (1 - share) * low


def _fixed_large(chain: Chain, i: Tensor, x: Tensor, v: Tensor) -> Tensor:
    # At i = 0 beta would be far too small for the last step's likelihood.
    last = chain.at("posterior_variance", i, x)
    first = (i == 0).to(x.device).view(last.shape)
    return torch.where(first, last, chain.at("betas", i, x)).log()


VARIANCES: dict[str, Callable[[Chain, Tensor, Tensor, Tensor], Tensor]] = {
    "learned-range": _learned_range,
    "fixed-small": lambda chain, i, x, v: chain.at("posterior_variance", i, x).log(),
    "fixed-large": _fixed_large,
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


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """Ancestral sampling over `steps` of the chain's steps."""

    steps: int = 250


@dataclass(frozen=True, kw_only=True)
class Ddim:
    """DDIM over `steps` of the chain's steps; eta 0 is deterministic, 1 adds DDPM's noise."""

    steps: int = 50
    eta: float = 0.0


def ddim_step(chain: Chain, i: Tensor, x_star: Tensor, eps: Tensor, z: Tensor, eta: float):
    """x_{i-1} from the predicted data and noise (Song et al. 2021, eqs. 12 and 16)."""
    before, now = (chain.at(name, i, eps) for name in ("alpha_bar_before", "alpha_bar"))
    std = eta * ((1 - before) / (1 - now) * (1 - now / before)).sqrt()
    # Rounding may leave the direction's share slightly below 0 at i = 0.
    direction = (1 - before - std**2).clamp(min=0).sqrt()
    return before.sqrt() * x_star + direction * eps + std * z


@dataclass(frozen=True, kw_only=True)
class Diffusion(Flow):
    """DiT's process; between its steps it is a path like any other, so ODE and SDE apply too.

    betas: a row of BETAS, or the betas themselves. variance: a row of VARIANCES.
    """

    interpolant: str = "ddpm"
    prediction: str = "noise"
    betas: str | tuple[float, ...] = "linear"
    variance: str = "learned-range"

    @cached_property
    def chain(self) -> Chain:
        """All T steps."""
        named = isinstance(self.betas, str)
        return Chain(BETAS[self.betas]() if named else torch.tensor(self.betas).double())

    def out_channels(self, channels: int) -> int:
        """Channels the network must have; learned variance takes as many again."""
        return 2 * channels if self.variance == "learned-range" else channels

    def describe(self) -> str:
        """For people: 'discrete, linear betas, ...'."""
        betas = self.betas if isinstance(self.betas, str) else "given"
        return (
            f"discrete, {len(self.chain)} steps of {betas} betas, {self.prediction} prediction, "
            f"{self.variance} variance, loss weight {self.loss_weight}"
            + (f", direction loss {self.direction:g}" if self.direction else "")
        )

    def path(self, t: Tensor, x: Tensor) -> Path:
        """The chain's path at times t (B,), broadcast against x (B, ...)."""
        return path_at(self.chain.path, t, x)

    def network_time(self, t: Tensor) -> Tensor:
        """k = T t - 1, the step's number, not an integer between two steps.

        Before the first step its k = 0, the least noise that the network has seen.
        """
        return (t * len(self.chain) - 1).clamp(min=0)

    def time_of(self, network_time: Tensor) -> Tensor:
        """t = (k + 1) / T of step k (B,)."""
        return (network_time + 1) / len(self.chain)

    @property
    def least_time(self) -> float:
        """The first step's."""
        return 1 / len(self.chain)

    def ode_interval(self) -> Interval:
        """To the data by a jump, as DDIM's last step is: the network knows no time below 1/T."""
        return Interval(1.0, 0.0, jump=True)

    def sde_interval(self, wt: str, last_step_size: float) -> Interval:
        """That of vp, whose discretisation the chain is."""
        return sde_interval("vp", self.prediction, wt, last_step_size)

    def draw_times(self, number: int, generator: torch.Generator, times: Times = PLAIN) -> Tensor:
        """Steps as times (k+1)/T, (number,)."""
        steps = len(self.chain)
        if times.plain:
            return (torch.randint(steps, (number,), generator=generator) + 1) / steps
        k = (times.draw(number, generator) * steps).long().clamp(max=steps - 1)
        return (k + 1) / steps

    def loss(self, network: Network, x_star: Tensor, y: Tensor, *, t: Tensor, eps: Tensor) -> Loss:
        """Regression loss at steps t = (k+1)/T, plus the variational bound if variance is learned.

        The bound sees the mean detached: it teaches the variance alone (Nichol and Dhariwal
        section 3.1). It is in bits per dimension and not divided by T, as in DiT.
        """
        steps, channels = len(self.chain), x_star.shape[1]
        k = (t * steps).round().long() - 1
        path = self.path((k + 1).double() / steps, x_star)
        x = path.mix(x_star, eps)
        output = network(x, k.to(x.dtype), y).float()
        loss = self.regression(output[:, :channels], x_star, eps, path)
        if self.variance != "learned-range":
            return loss
        detached = torch.cat([output[:, :channels].detach(), output[:, channels:]], dim=1)
        term = self.bound_term(self.chain, detached, x_star, x, k, path)
        return Loss(loss.loss + term, loss.velocity)

    def reverse(self, chain: Chain, output: Tensor, x: Tensor, i: Tensor, path: Path):
        """The network's output (B, C or 2C, ...) at step i (B,) -> (p(x_{i-1} | x_i), x_*, eps)."""
        channels = x.shape[1]
        output = output.to(x.dtype)
        x_star, eps = PREDICTIONS[self.prediction].decode(output[:, :channels], x, path)
        mean = chain.posterior(x_star, x, i).mean
        log_variance = VARIANCES[self.variance](chain, i, x, output[:, channels:])
        return Moments(mean, log_variance), x_star, eps

    def bound_term(
        self,
        chain: Chain,
        output: Tensor,
        x_star: Tensor,
        x: Tensor,
        i: Tensor,
        path: Path,
        *,
        tails: bool = True,
    ) -> Tensor:
        """L_i of the variational bound (DDPM eq. 5) in bits per dimension, (B,).

        KL(q(x_{i-1} | x_i, x_*) || p), and at i = 0 the discretised likelihood of x_*.
        """
        model, _, _ = self.reverse(chain, output, x, i, path)
        kl = gaussian_kl(chain.posterior(x_star, x, i), model)
        first = (i == 0).to(x.device).view(-1, *(1,) * (x.ndim - 1))
        # Elsewhere it is not wanted, and its gradient could be infinite.
        likely = Moments(torch.where(first, model.mean, x_star), model.log_variance)
        nll = discretised_gaussian_nll(x_star, likely, tails=tails)
        return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)

    @torch.no_grad()
    def bound(
        self,
        network: Network,
        x_star: Tensor,
        y: Tensor,
        *,
        steps: int | None = None,
        tails: bool,
        randn: Callable[[], Tensor],
    ) -> Iterator[tuple[int, int, Tensor]]:
        """The variational bound on -log2 p(x_*) per dimension, (B,), of the chain of `steps` steps.

        p(x_*) is the probability of a bin of width 2/255; tails, of bytes: see
        `discretised_gaussian_nll`.
        Yields (evaluations done, in all, the sum so far); the last one is the bound. One noise
        draw randn() for each of the chain's terms; the prior's term is exact.
        """
        chain = self.chain.respaced(steps or len(self.chain))
        last = x_star.new_full((len(x_star),), len(chain) - 1, dtype=torch.long)
        abar = chain.at("alpha_bar", last, x_star)
        end = Moments(abar.sqrt() * x_star, (1 - abar).log())
        prior = Moments(torch.zeros_like(abar), torch.zeros_like(abar))
        total = gaussian_kl(end, prior).flatten(1).mean(1) / math.log(2)
        for done, i in enumerate(reversed(range(len(chain))), start=1):
            steps_i = torch.full_like(last, i)
            k, path = self._place(chain, i, x_star)
            x = path.mix(x_star, randn())
            output = network(x, k, y)
            total = total + self.bound_term(chain, output, x_star, x, steps_i, path, tails=tails)
            yield done, len(chain), total

    def _place(self, chain: Chain, i: int, x: Tensor) -> tuple[Tensor, Path]:
        """What the network is told at the chain's step i, (B,), and the path there."""
        k = chain.timesteps[i]
        t = torch.full((len(x),), (k + 1) / len(self.chain), dtype=torch.float64)
        return x.new_full((len(x),), k), self.path(t, x)

    def sample(
        self,
        network: Network,
        noise: Tensor,
        y: Tensor,
        sampler: Ddpm | Ddim | Ode | Sde,
        *,
        randn: Callable[[], Tensor] | None = None,
    ) -> Iterator[tuple[float, Tensor]]:
        """From noise (B, C, h, w) to data by the chain's own samplers, or as `Flow.sample`.

        Yields (t, x_t) after every step; randn() gives the step's noise.
        """
        if isinstance(sampler, (Ode, Sde)):
            yield from super().sample(network, noise, y, sampler, randn=randn)
            return
        chain, x = self.chain.respaced(sampler.steps), noise
        for i in reversed(range(len(chain))):
            k, path = self._place(chain, i, x)
            steps_i = torch.full((len(x),), i)
            model, x_star, eps = self.reverse(chain, network(x, k, y), x, steps_i, path)
            noisy = i > 0 and (isinstance(sampler, Ddpm) or sampler.eta > 0)
            z = randn() if noisy else torch.zeros_like(x)
            if isinstance(sampler, Ddim):
                x = ddim_step(chain, steps_i, x_star, eps, z, sampler.eta)
            else:
                x = model.mean + (0.5 * model.log_variance).exp() * z
            yield (chain.timesteps[i - 1] + 1) / len(self.chain) if i else 0.0, x
