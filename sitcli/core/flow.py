"""The SiT process: loss and samplers of a continuous-time interpolant (SiT sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sitcli.core.interpolant import Path, path_at
from sitcli.core.intervals import (
    ERROR_TIME,
    Interval,
    beginning_at,
    last_step_size,
    ode_interval,
    reliable_start,
    sde_interval,
    train_interval,
)
from sitcli.core.ode import ADAPTIVE, MULTISTEPS, Evaluation, solve_multistep, solve_ode
from sitcli.core.prediction import (
    LOSS_WEIGHTS,
    PREDICTIONS,
    Network,
    prediction_error,
    to_data,
    to_score,
    to_velocity,
)
from sitcli.core.sde import LAST_STEPS, Drift, solve_sde
from sitcli.core.times import PLAIN, Random, Times
from sitcli.core.wt import LossCurve


class Loss(NamedTuple):
    """Per-sample means over the elements, (B,): what is minimised, and the velocity's error."""

    loss: Tensor
    velocity: Tensor


def direction_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """1 - cos of the angle between the two over the channels, mean over the places, (B,).

    velocity, target: (B, C, h, w). Yao et al. 2025 (LightningDiT).
    """
    return (1 - F.cosine_similarity(velocity, target, dim=1)).flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class Ode:
    """The probability-flow ODE; rtol and atol are an adaptive solver's, which takes no step count.

    shift: of the grid of times, see `times.shifted`.
    interval: where it begins and ends; None is the process's own interval.
    """

    solver: str = "heun"
    steps: int = 50
    shift: float = 1.0
    interval: Interval | None = None
    rtol: float = 1e-5
    atol: float = 1e-5

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its own steps."""
        return self.solver in ADAPTIVE


@dataclass(frozen=True, kw_only=True)
class Sde:
    """The reverse SDE; w is (t, path) -> w_t, wt its name, which decides where time begins.

    last_step_size: time left for the last step, None the process's own.
    shift: of the grid of times, see `times.shifted`.
    interval: where the noisy steps begin and end; None is the process's own interval.
    """

    w: Callable[[Tensor, Path], Tensor]
    wt: str
    solver: str = "euler-maruyama"
    steps: int = 250
    last_step: str = "mean"
    last_step_size: float | None = None
    shift: float = 1.0
    interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Flow:
    """An interpolant, what the network predicts, and how its loss is weighted.

    direction: weight of the velocity-direction loss, see `direction_loss`.
    """

    interpolant: str = "linear"
    prediction: str = "velocity"
    loss_weight: str = "none"
    direction: float = 0.0

    def out_channels(self, channels: int) -> int:
        """Channels the network must have for latents of `channels`."""
        return channels

    def describe(self) -> str:
        """For people: 'gvp, velocity prediction, loss weight none'."""
        text = f"{self.interpolant}, {self.prediction} prediction, loss weight {self.loss_weight}"
        return text + (f", direction loss {self.direction:g}" if self.direction else "")

    def path(self, t: Tensor, x: Tensor) -> Path:
        """The path at times t (B,), broadcast against x (B, ...)."""
        return path_at(self.interpolant, t, x)

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is fed at time t: t itself."""
        return t

    def time_of(self, network_time: Tensor) -> Tensor:
        """The time t (B,) at which the network is fed this: the inverse of `network_time`."""
        return network_time

    @property
    def least_time(self) -> float:
        """The earliest time at which the network is evaluated, if the data's end is not t = 0."""
        return 0.0

    @property
    def last_step_size(self) -> float:
        """The time that the SDE leaves for its last step, unless another is asked for."""
        return last_step_size(self.alpha_sigma)

    def ode_interval(self, curve: LossCurve | None = None) -> Interval:
        """End points of the probability-flow ODE, for a network whose velocity loss is `curve`.

        Data prediction jumps to the data from where the SDE's last step begins: an error of the
        data is 1 / sigma of it in the velocity, which with more steps would go on to smaller sigma.
        """
        interval = ode_interval(self.interpolant, self.prediction)
        if interval.jump:
            interval = interval._replace(jump_from=self.last_step_size)
        return self._reliable(interval, curve)

    def sde_interval(
        self, wt: str, last_step_size: float, curve: LossCurve | None = None
    ) -> Interval:
        """End points of the reverse SDE before its last step; size 0 is no last step."""
        interval = sde_interval(self.interpolant, self.prediction, wt, last_step_size)
        return self._reliable(interval, curve)

    def _reliable(self, interval: Interval, curve: LossCurve | None) -> Interval:
        """The interval without the times at which nothing can be told of the data from eps."""
        start = interval.start
        if curve is not None and PREDICTIONS[self.prediction].divides_by == "alpha":
            t = torch.tensor([ERROR_TIME], dtype=torch.float64)
            velocity_error = PREDICTIONS[self.prediction].velocity_error(self.path(t, t))
            noise_error = float(curve(t).sqrt() / velocity_error)
            start = reliable_start(noise_error, start, self.alpha_sigma)
        return beginning_at(interval, start, self.alpha_sigma)

    def draw_times(self, random: Random, times: Times = PLAIN) -> Tensor:
        """Training times over the interval, (B,)."""
        low, high = train_interval(self.interpolant, self.prediction, self.loss_weight)
        return low + (high - low) * times.draw(random)

    def loss(self, network: Network, x_star: Tensor, y: Tensor, *, t: Tensor, eps: Tensor) -> Loss:
        """Regression losses of SiT eqs. 6, 7 and 49 for data x_* (B, C, h, w) at times t (B,).

        velocity: |v_theta - x'_t|^2; score: |sigma s_theta + eps|^2; noise and data: plain.
        The weights turn the same error into the velocity loss or the likelihood bound.
        """
        path = self.path(t, x_star)
        output = network(path.mix(x_star, eps), self.network_time(t), y)
        return self.regression(output[:, : x_star.shape[1]].float(), x_star, eps, path)

    def regression(self, output: Tensor, x_star: Tensor, eps: Tensor, path: Path) -> Loss:
        """The weighted error of an output (B, C, h, w)."""
        residual = prediction_error(self.prediction, output, x_star, eps, path)
        error = residual.square().flatten(1).mean(1)
        velocity = (PREDICTIONS[self.prediction].velocity_error(path) ** 2).flatten() * error
        loss = LOSS_WEIGHTS[self.loss_weight].weigh(error, velocity, path)
        if self.direction:
            x = path.mix(x_star, eps)
            v = to_velocity(self.prediction, output, x, path)
            loss = loss + self.direction * direction_loss(v, path.velocity(x_star, eps))
        return Loss(loss, velocity.detach())

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
            return self._sample_sde(network, noise, y, sampler, randn)
        return self._sample_ode(network, noise, y, sampler)

    def _sample_sde(
        self,
        network: Network,
        noise: Tensor,
        y: Tensor,
        sde: Sde,
        randn: Callable[[], Tensor] | None,
    ) -> Iterator[tuple[float, Tensor]]:
        size = self.last_step_size if sde.last_step_size is None else sde.last_step_size
        has_last_step = LAST_STEPS[sde.last_step] is not None
        interval = sde.interval or self.sde_interval(sde.wt, size if has_last_step else 0.0)
        return solve_sde(
            lambda x, t: self.drift(network, x, y, x.new_full((len(x),), t), sde),
            interval.scale * noise,
            interval,
            solver=sde.solver,
            steps=sde.steps,
            last_step=sde.last_step,
            randn=randn,
            shift=sde.shift,
        )

    def _sample_ode(
        self, network: Network, noise: Tensor, y: Tensor, ode: Ode
    ) -> Iterator[tuple[float, Tensor]]:
        interval = ode.interval or self.ode_interval()
        x = interval.scale * noise

        def evaluate(x: Tensor, t: float) -> Evaluation:
            path, output = self._evaluate(network, x, y, x.new_full((len(x),), t))
            return Evaluation(
                t,
                to_velocity(self.prediction, output, x, path),
                to_data(self.prediction, output, x, path),
            )

        def data(x: Tensor, t: float) -> Tensor:
            path, output = self._evaluate(network, x, y, x.new_full((len(x),), t))
            return to_data(self.prediction, output, x, path)

        if ode.adaptive:
            return ADAPTIVE[ode.solver](
                lambda x, t, rows: self.velocity(network, x, y[rows], t.to(x)),
                data,
                x,
                interval,
                rtol=ode.rtol,
                atol=ode.atol,
            )
        steps = dict(solver=ode.solver, steps=ode.steps, shift=ode.shift)
        if ode.solver in MULTISTEPS:
            return solve_multistep(evaluate, self.alpha_sigma, x, interval, **steps)
        return solve_ode(
            lambda x, t: self.velocity(network, x, y, x.new_full((len(x),), t)),
            data,
            x,
            interval,
            **steps,
        )

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """alpha and sigma at one time."""
        path = self.path(torch.tensor([t], dtype=torch.float64), torch.zeros(1).double())
        return float(path.alpha), float(path.sigma)

    def velocity(self, network: Network, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The probability-flow velocity at (x, t), t (B,)."""
        path, output = self._evaluate(network, x, y, t)
        return to_velocity(self.prediction, output, x, path)

    def drift(self, network: Network, x: Tensor, y: Tensor, t: Tensor, sde: Sde) -> Drift:
        """Velocity, score, posterior mean and w_t from one network evaluation."""
        path, output = self._evaluate(network, x, y, t)
        w = sde.w(t.view(path.alpha.shape), path)
        return Drift(
            to_velocity(self.prediction, output, x, path),
            to_score(self.prediction, output, x, path),
            to_data(self.prediction, output, x, path),
            w,
        )

    def _evaluate(self, network: Network, x: Tensor, y: Tensor, t: Tensor) -> tuple[Path, Tensor]:
        """The path at t (B,) and the network's output on the latent's channels."""
        output = network(x, self.network_time(t), y)[:, : x.shape[1]]
        return self.path(t, x), output.to(x.dtype)
