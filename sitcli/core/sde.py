"""Steps of the reverse SDE (SiT eq. 5): Euler-Maruyama, stochastic Heun, the last step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from sitcli.core.intervals import Interval
from sitcli.core.times import time_grid


class Drift(NamedTuple):
    """Everything one network evaluation says at (x, t); data is E[x_* | x_t]."""

    velocity: Tensor
    score: Tensor
    data: Tensor
    w: Tensor

    @property
    def sde(self) -> Tensor:
        """Drift of the reverse SDE in forward time: v - w score / 2 (SiT eq. 10)."""
        return self.velocity - 0.5 * self.w * self.score


DriftAt = Callable[[Tensor, float], Drift]


def bounded(drift: Drift, h: float) -> Drift:
    """The same with w_t at most 1/h.

    The marginals do not depend on w_t, but an explicit step is stable only while w h < 2 (the
    score is about -x near t = 1), and w_KL is infinite there on linear and gvp: unbounded, its
    first step leaves the state 4 times too wide at 250 steps and 50 times at 20.
    """
    return drift._replace(w=drift.w.clamp(max=1 / h))


def euler_maruyama(drift: DriftAt, x: Tensor, t: float, s: float, z: Tensor) -> Tensor:
    """x - h v + (h/2) w score + sqrt(w h) z: one evaluation."""
    h = t - s
    now = bounded(drift(x, t), h)
    return x - h * now.sde + (now.w * h).sqrt() * z


def stochastic_heun(drift: DriftAt, x: Tensor, t: float, s: float, z: Tensor) -> Tensor:
    """Trapezoid rule in the drift and in the variance: weak order 2 for additive noise."""
    h = t - s
    now = bounded(drift(x, t), h)
    then = bounded(drift(x - h * now.sde + (now.w * h).sqrt() * z, s), h)
    return x - h / 2 * (now.sde + then.sde) + (h / 2 * (now.w + then.w)).sqrt() * z


class SdeStep(NamedTuple):
    """A stochastic step and its evaluations."""

    step: Callable[[DriftAt, Tensor, float, float, Tensor], Tensor]
    evaluations: int


SDE_STEPS = {
    "euler-maruyama": SdeStep(euler_maruyama, 1),
    "heun": SdeStep(stochastic_heun, 2),
}


class LastStep(NamedTuple):
    """step(drift, x, t) goes from t to 0 without noise (SiT appendix).

    uses_w: whether it follows w_t, which must then vanish at the data.
    """

    step: Callable[[DriftAt, Tensor, float], Tensor]
    uses_w: bool = False


# None: the state stays where the SDE stopped.
LAST_STEPS: dict[str, LastStep | None] = {
    "mean": LastStep(lambda drift, x, t: x - t * bounded(drift(x, t), t).sde, uses_w=True),
    "tweedie": LastStep(lambda drift, x, t: drift(x, t).data),
    "euler": LastStep(lambda drift, x, t: x - t * drift(x, t).velocity),
    "none": None,
}


def solve_sde(
    drift: DriftAt,
    x: Tensor,
    interval: Interval,
    *,
    solver: str,
    steps: int,
    last_step: str,
    randn: Callable[[], Tensor],
    shift: float = 1.0,
) -> Iterator[tuple[float, Tensor]]:
    """`steps` steps in all: steps - 1 noisy ones over the interval, then the last one to t = 0.

    Without a last step all steps are noisy and the state stays at interval.end. randn() gives
    the standard normal noise of the next step, shaped as x. Yields (time, state) after each step.
    """
    last = LAST_STEPS[last_step]
    noisy = steps if last is None else steps - 1
    if noisy:
        for t, s in pairwise(time_grid(interval, noisy, shift)):
            x = SDE_STEPS[solver].step(drift, x, t, s, randn())
            yield s, x
    if last is not None:
        yield 0.0, last.step(drift, x, interval.end if noisy else interval.start)
