"""DiT's process: a chain of 1000 steps, its losses, and the samplers DDPM and DDIM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sitcli.core.chain import (
    BETAS,
    VARIANCES,
    Chain,
    Moments,
    discretised_gaussian_nll,
    gaussian_kl,
)
from sitcli.core.flow import Flow, Loss, Ode, Sde
from sitcli.core.interpolant import Path, path_at
from sitcli.core.intervals import Interval, sde_interval
from sitcli.core.prediction import PREDICTIONS, Network
from sitcli.core.times import PLAIN, Random, Times
from sitcli.core.wt import LossCurve


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """Ancestral sampling over `steps` of the chain's steps."""

    steps: int = 250
    interval: None = None  # the chain is of whole steps


@dataclass(frozen=True, kw_only=True)
class Ddim:
    """DDIM over `steps` of the chain's steps; eta 0 is deterministic, 1 adds DDPM's noise."""

    steps: int = 50
    eta: float = 0.0
    interval: None = None  # the chain is of whole steps


def ddim_step(chain: Chain, i: Tensor, x_star: Tensor, eps: Tensor, z: Tensor, eta: float):
    """x_{i-1} from the predicted data and noise (Song et al. 2021, eqs. 12 and 16)."""
    before, now = (chain.table_at(name, i, eps) for name in ("alpha_bar_before", "alpha_bar"))
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
        return 2 * channels if VARIANCES[self.variance].learned else channels

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
        """k = T t - 1, the number of the step, which is fractional between two steps.

        Before the first step k is 0: the network has not seen less noise than at that step.
        """
        return (t * len(self.chain) - 1).clamp(min=0)

    def time_of(self, network_time: Tensor) -> Tensor:
        """t = (k + 1) / T of step k (B,)."""
        return (network_time + 1) / len(self.chain)

    @property
    def least_time(self) -> float:
        """1/T, the time of the chain's first step."""
        return 1 / len(self.chain)

    def ode_interval(self, curve: LossCurve | None = None) -> Interval:
        """From 1 to 0. The last step jumps to the data as in DDIM: the network needs t >= 1/T."""
        return self._reliable(Interval(1.0, 0.0, jump=True), curve)

    def sde_interval(
        self, wt: str, last_step_size: float, curve: LossCurve | None = None
    ) -> Interval:
        """The interval of vp: the chain is a discretisation of vp."""
        return self._reliable(sde_interval("vp", self.prediction, wt, last_step_size), curve)

    def draw_times(self, random: Random, times: Times = PLAIN) -> Tensor:
        """Steps as times (k+1)/T, (B,)."""
        steps = len(self.chain)
        if times.plain:
            return (random.integers(steps) + 1) / steps
        k = (times.draw(random) * steps).long().clamp(max=steps - 1)
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
        if not VARIANCES[self.variance].learned:
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
        log_variance = VARIANCES[self.variance].log_variance(chain, i, x, output[:, channels:])
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
        # At other steps the likelihood is not used, and its gradient could be infinite.
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

        p(x_*) is the probability of a bin of width 2/255; tails: True for bytes, see
        `discretised_gaussian_nll`.
        Yields (evaluations done, in all, the sum so far); the last one is the bound. One noise
        draw randn() for each of the chain's terms; the prior's term is exact.
        """
        chain = self.chain.respaced(steps or len(self.chain))
        last = x_star.new_full((len(x_star),), len(chain) - 1, dtype=torch.long)
        abar = chain.table_at("alpha_bar", last, x_star)
        end = Moments(abar.sqrt() * x_star, (1 - abar).log())
        prior = Moments(torch.zeros_like(abar), torch.zeros_like(abar))
        total = gaussian_kl(end, prior).flatten(1).mean(1) / math.log(2)
        for done, i in enumerate(reversed(range(len(chain))), start=1):
            steps_i = torch.full_like(last, i)
            k, path = self._time_and_path(chain, i, x_star)
            x = path.mix(x_star, randn())
            output = network(x, k, y)
            total = total + self.bound_term(chain, output, x_star, x, steps_i, path, tails=tails)
            yield done, len(chain), total

    def _time_and_path(self, chain: Chain, i: int, x: Tensor) -> tuple[Tensor, Path]:
        """The network's time (B,) at the chain's step i, and the path there."""
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
            k, path = self._time_and_path(chain, i, x)
            steps_i = torch.full((len(x),), i)
            model, x_star, eps = self.reverse(chain, network(x, k, y), x, steps_i, path)
            noisy = i > 0 and (isinstance(sampler, Ddpm) or sampler.eta > 0)
            z = randn() if noisy else torch.zeros_like(x)
            if isinstance(sampler, Ddim):
                x = ddim_step(chain, steps_i, x_star, eps, z, sampler.eta)
            else:
                x = model.mean + (0.5 * model.log_variance).exp() * z
            yield (chain.timesteps[i - 1] + 1) / len(self.chain) if i else 0.0, x
