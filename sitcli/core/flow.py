"""The SiT process: loss and samplers of a continuous-time interpolant (SiT sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sitcli.core.interpolant import Path, ode_interval, path_at, sde_interval, train_interval
from sitcli.core.prediction import PREDICTIONS, to_data, to_score, to_velocity
from sitcli.core.solvers import Drift, solve_dopri5, solve_ode, solve_sde

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Loss(NamedTuple):
    """Per-sample means over the elements, (B,): what is minimised, and the velocity's error."""

    loss: Tensor
    velocity: Tensor


@dataclass(frozen=True, kw_only=True)
class Ode:
    """The probability-flow ODE; rtol and atol are dopri5's, which takes no step count."""

    solver: str = "heun"
    steps: int = 50
    rtol: float = 1e-5
    atol: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class Sde:
    """The reverse SDE; w is (t, path) -> w_t, wt its name, which decides where time begins."""

    w: Callable[[Tensor, Path], Tensor]
    wt: str
    solver: str = "euler-maruyama"
    steps: int = 250
    last_step: str = "mean"
    last_step_size: float = 0.04


@dataclass(frozen=True, kw_only=True)
class Flow:
    """An interpolant, what the network predicts, and how its loss is weighted."""

    interpolant: str = "linear"
    prediction: str = "velocity"
    loss_weight: str = "none"

    def draw_times(self, number: int, generator: torch.Generator) -> Tensor:
        """Training times, uniform over the interval, (number,)."""
        low, high = train_interval(self.interpolant, self.prediction, self.loss_weight)
        return low + (high - low) * torch.rand(number, generator=generator)

    def loss(self, network: Network, x_star: Tensor, y: Tensor, *, t: Tensor, eps: Tensor) -> Loss:
        """Regression losses of SiT eqs. 6, 7 and 49 for data x_* (B, C, h, w) at times t (B,).

        velocity: |v_theta - x'_t|^2; score: |sigma s_theta + eps|^2; noise and data: plain.
        The weights turn the same error into the velocity loss or the likelihood bound.
        """
        path = path_at(self.interpolant, t, x_star)
        prediction = PREDICTIONS[self.prediction]
        output = network(path.mix(x_star, eps), t, y)[:, : x_star.shape[1]].float()
        if self.prediction == "score":
            residual = path.sigma * output + eps
        else:
            residual = output - prediction.encode(x_star, eps, path)
        error = residual.square().flatten(1).mean(1)
        to_velocity_loss = (prediction.velocity_error(path) ** 2).flatten()
        velocity = to_velocity_loss * error
        if self.loss_weight == "velocity":
            return Loss(velocity, velocity.detach())
        if self.loss_weight == "likelihood":
            # lambda/sigma times the noise error: half of w_KL / sigma^2 (SiT eq. 25).
            return Loss(velocity / (path.lambda_t * path.sigma).flatten(), velocity.detach())
        return Loss(error, velocity.detach())

    def sample(
        self,
        network: Network,
        noise: Tensor,
        y: Tensor,
        sampler: Ode | Sde,
        *,
        randn: Callable[[], Tensor] | None = None,
    ) -> Iterator[tuple[float, Tensor]]:
        """From noise (B, C, h, w) at t = 1 to data; yields (t, x_t) after every step.

        randn() gives the SDE's noise, step by step, shaped as `noise`.
        """
        if isinstance(sampler, Sde):
            interval = sde_interval(
                self.interpolant,
                self.prediction,
                sampler.wt,
                0.0 if sampler.last_step == "none" else sampler.last_step_size,
            )

            def drift(x: Tensor, t: float) -> Drift:
                return self.drift(network, x, y, x.new_full((len(x),), t), sampler)

            return solve_sde(
                drift,
                noise,
                interval,
                solver=sampler.solver,
                steps=sampler.steps,
                last_step=sampler.last_step,
                randn=randn,
            )
        interval = ode_interval(self.interpolant, self.prediction)

        def data(x: Tensor, t: float) -> Tensor:
            times = x.new_full((len(x),), t)
            path = path_at(self.interpolant, times, x)
            return to_data(self.prediction, network(x, times, y).to(x.dtype), x, path)

        if sampler.solver == "dopri5":
            return solve_dopri5(
                lambda x, t, rows: self.velocity(network, x, y[rows], t.to(x)),
                data,
                noise,
                interval,
                rtol=sampler.rtol,
                atol=sampler.atol,
            )
        return solve_ode(
            lambda x, t: self.velocity(network, x, y, x.new_full((len(x),), t)),
            data,
            noise,
            interval,
            solver=sampler.solver,
            steps=sampler.steps,
        )

    def velocity(self, network: Network, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The probability-flow velocity at (x, t), t (B,)."""
        path = path_at(self.interpolant, t, x)
        return to_velocity(self.prediction, network(x, t, y).to(x.dtype), x, path)

    def drift(self, network: Network, x: Tensor, y: Tensor, t: Tensor, sde: Sde) -> Drift:
        """Velocity, score, posterior mean and w_t from one network evaluation."""
        path = path_at(self.interpolant, t, x)
        output = network(x, t, y).to(x.dtype)
        w = sde.w(t.view(path.alpha.shape), path)
        return Drift(
            to_velocity(self.prediction, output, x, path),
            to_score(self.prediction, output, x, path),
            to_data(self.prediction, output, x, path),
            w,
        )
