"""Steps of the probability-flow ODE: Euler, Heun, RK4, multistep, adaptive Dormand-Prince."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sitcli.core.intervals import Interval
from sitcli.core.times import time_grid

# velocity(x, t) for a state x (B, ...) and one time for all samples.
Velocity = Callable[[Tensor, float], Tensor]


def euler(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """The explicit Euler step."""
    return x - (t - s) * velocity(x, t)


def heun(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """Heun's step: the trapezoid rule with an Euler predictor."""
    h = t - s
    v = velocity(x, t)
    return x - h / 2 * (v + velocity(x - h * v, s))


def rk4(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """The classical Runge-Kutta step."""
    h, middle = t - s, (t + s) / 2
    k1 = velocity(x, t)
    k2 = velocity(x - h / 2 * k1, middle)
    k3 = velocity(x - h / 2 * k2, middle)
    k4 = velocity(x - h * k3, s)
    return x - h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class OdeStep(NamedTuple):
    """A step, its order of convergence and its evaluations; a test measures both."""

    step: Callable[[Velocity, Tensor, float, float], Tensor]
    order: int
    evaluations: int


ODE_STEPS = {"euler": OdeStep(euler, 1, 1), "heun": OdeStep(heun, 2, 2), "rk4": OdeStep(rk4, 4, 4)}


def solve_ode(
    velocity: Velocity,
    data: Callable[[Tensor, float], Tensor],
    x: Tensor,
    interval: Interval,
    *,
    solver: str,
    steps: int,
    shift: float = 1.0,
) -> Iterator[tuple[float, Tensor]]:
    """Fixed steps from x at interval.start; yields (time, state) after each of `steps` steps.

    data(x, t) is the posterior mean E[x_* | x_t], which is the last step of a jump interval.
    """
    for t, s in pairwise(time_grid(interval, steps, shift)):
        jumps = interval.jump and s == interval.end
        x = data(x, t) if jumps else ODE_STEPS[solver].step(velocity, x, t, s)
        yield s, x


class Evaluation(NamedTuple):
    """What one network evaluation says at time t; data is E[x_* | x_t]."""

    t: float
    velocity: Tensor
    data: Tensor


# alpha and sigma at a time.
AlphaSigma = Callable[[float], tuple[float, float]]


def adams_bashforth_2(
    now: Evaluation, before: Evaluation | None, x: Tensor, s: float, alpha_sigma: AlphaSigma
) -> Tensor:
    """The two-step Adams-Bashforth step for steps of any length; Euler's without a past."""
    h = now.t - s
    if before is None:
        return x - h * now.velocity
    r = h / (2 * (before.t - now.t))
    return x - h * ((1 + r) * now.velocity - r * before.velocity)


def dpm_solver_2m(
    now: Evaluation, before: Evaluation | None, x: Tensor, s: float, alpha_sigma: AlphaSigma
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), in lambda = log(alpha / sigma).

    Without a past, or where lambda is infinite (the noise's end on linear and gvp, the data's
    end), the step is the first-order one, which is DDIM's.
    """
    (alpha, sigma), (alpha_s, sigma_s) = alpha_sigma(now.t), alpha_sigma(s)
    data = now.data
    alpha_before, sigma_before = alpha_sigma(before.t) if before is not None else (0.0, 1.0)
    if alpha_before > 0 and sigma_s > 0:
        middle = math.log(alpha / sigma)
        h = math.log(alpha_s / sigma_s) - middle
        r = (middle - math.log(alpha_before / sigma_before)) / h
        data = data + (data - before.data) / (2 * r)
    # alpha_s (1 - e^-h) without the infinities.
    return sigma_s / sigma * x + (alpha_s - sigma_s * alpha / sigma) * data


class Multistep(NamedTuple):
    """A step that remembers the evaluation before, one evaluation each; a test measures order.

    drops_history_on_last_step: the last step is long, and extrapolating over it is less accurate
    than a one-step rule.
    """

    step: Callable[[Evaluation, Evaluation | None, Tensor, float, AlphaSigma], Tensor]
    order: int
    drops_history_on_last_step: bool = False


MULTISTEPS = {
    "ab2": Multistep(adams_bashforth_2, 2),
    "dpm++2m": Multistep(dpm_solver_2m, 2, drops_history_on_last_step=True),
}


def solve_multistep(
    evaluate: Callable[[Tensor, float], Evaluation],
    alpha_sigma: AlphaSigma,
    x: Tensor,
    interval: Interval,
    *,
    solver: str,
    steps: int,
    shift: float = 1.0,
) -> Iterator[tuple[float, Tensor]]:
    """Fixed steps by a row of MULTISTEPS; yields (time, state) after each of `steps` steps.

    The last step of a jump interval goes to the posterior mean, evaluate(x, t).data.
    """
    step, _, drops_history_on_last_step = MULTISTEPS[solver]
    before = None
    for t, s in pairwise(time_grid(interval, steps, shift)):
        now = evaluate(x, t)
        if interval.jump and s == interval.end:
            x = now.data
        else:
            last = s in (interval.end, interval.jump_from)  # before a jump too
            past = None if drops_history_on_last_step and last else before
            x = step(now, past, x, s, alpha_sigma)
        before = now
        yield s, x


# Dormand and Prince (1980), 5(4): nodes, rows of the tableau, weights of the error estimate.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ROWS = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (
    35 / 384 - 5179 / 57600,
    0.0,
    500 / 1113 - 7571 / 16695,
    125 / 192 - 393 / 640,
    -2187 / 6784 + 92097 / 339200,
    11 / 84 - 187 / 2100,
    -1 / 40,
)


def solve_dopri5(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    data: Callable[[Tensor, float], Tensor],
    x: Tensor,
    interval: Interval,
    *,
    rtol: float,
    atol: float,
    max_evaluations: int = 10_000,
) -> Iterator[tuple[float, Tensor]]:
    """Adaptive Dormand-Prince with a step size per sample, so no sample depends on its batch.

    velocity(x, t, rows) takes the samples still moving, their own times (b,) and their indices in
    the batch (times and indices live on the CPU). Yields (largest time left, state) after each
    round of trials. A jump interval is integrated to the jump's beginning, 1e-3 if it says none,
    and finished with data(x, t). Raises
    ArithmeticError for a state that is not finite or when max_evaluations is reached.
    """
    end = interval.jump_from or 1e-3 if interval.jump else interval.end
    rows = torch.arange(len(x))
    t = torch.full((len(x),), interval.start, dtype=torch.float64)
    h = torch.full_like(t, 0.01 * (interval.start - end))
    k1 = velocity(x, t, rows)
    x, evaluations = x.clone(), 1
    while len(rows):
        trial = torch.minimum(h[rows], t[rows] - end)
        column = trial.to(x).view(-1, *(1,) * (x.ndim - 1))
        here, slopes = x[rows], [k1[rows]]
        for node, row in zip(_NODES[1:], _ROWS[1:], strict=True):
            moved = here - column * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
            slopes.append(velocity(moved, t[rows] - node * trial, rows))
        evaluations += 6
        error = column * sum(e * k for e, k in zip(_ERROR, slopes, strict=True) if e)
        tolerance = atol + rtol * torch.maximum(here.abs(), moved.abs())
        # On the CPU first: not every GPU has float64.
        ratio = (error / tolerance).flatten(1).square().mean(1).sqrt().cpu().double()
        ok = ratio <= 1
        factor = (0.9 * ratio.clamp(min=1e-10) ** -0.2).clamp(0.2, 10.0)
        h[rows] = trial * torch.where(ok, factor.clamp(min=1.0), factor.clamp(max=1.0))
        accepted = rows[ok]
        x[accepted], k1[accepted] = moved[ok], slopes[-1][ok]
        t[accepted] -= trial[ok]
        if evaluations > max_evaluations or not bool(torch.isfinite(ratio).all()):
            raise ArithmeticError(f"dopri5 did not converge within {evaluations} evaluations")
        rows = torch.nonzero(t > end + 1e-12).flatten()
        yield float(t.max()), x
    if interval.jump:
        yield 0.0, data(x, end)


# Solvers that choose their own steps, to a tolerance.
ADAPTIVE: dict[str, Callable[..., Iterator[tuple[float, Tensor]]]] = {"dopri5": solve_dopri5}
