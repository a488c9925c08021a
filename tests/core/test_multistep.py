"""Multistep solvers against closed forms, and the shift of their times."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli.core.flow import Flow, Ode
from sitcli.core.intervals import Interval
from sitcli.core.ode import (
    MULTISTEPS,
    Evaluation,
    adams_bashforth_2,
    dpm_solver_2m,
    solve_multistep,
)
from sitcli.core.times import Times, natural_shift, shifted, time_grid
from tests.core.gaussian import Gaussian

DATA = Gaussian(mean=0.7, std=0.6)
Y = torch.zeros(3, dtype=torch.long)


def states() -> torch.Tensor:
    return torch.linspace(-1.5, 2.0, 3, dtype=torch.float64).view(3, 1, 1, 1)


@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize("solver", MULTISTEPS)
def test_measured_order(solver: str, shift: float) -> None:
    """Fault: a weight of the past that fits equal steps alone, or a past that is never used."""
    flow, interval, x = Flow(interpolant="gvp"), Interval(0.9, 0.3), states()
    network = DATA.network("gvp", "velocity")

    def evaluate(x, t):
        times = x.new_full((3,), t)
        path = flow.path(times, x)
        v = network(x, times, Y)
        return Evaluation(t, v, (path.d_sigma * x - path.sigma * v) / path.W)

    def error(steps: int) -> float:
        *_, (_, end) = solve_multistep(
            evaluate, flow.place, x, interval, solver=solver, steps=steps, shift=shift
        )
        (m, d), (n, e) = (DATA.marginal("gvp", t) for t in interval[:2])
        return float((end - (n + e * (x - m) / d)).abs().max())

    assert abs(math.log2(error(160) / error(320)) - MULTISTEPS[solver].order) < 0.1


def test_adams_bashforth_is_exact_for_linear_velocities() -> None:
    """Fault: the two-step weights of equal steps where steps differ."""

    def at(t: float) -> Evaluation:
        return Evaluation(t, torch.tensor(2.0 + 3.0 * t), torch.tensor(0.0))

    x = adams_bashforth_2(at(0.7), at(0.9), torch.tensor(1.0), 0.4, lambda t: (1 - t, t))
    exact = 1.0 - (2.0 * (0.7 - 0.4) + 1.5 * (0.7**2 - 0.4**2))
    assert float(x) == pytest.approx(exact, abs=1e-6)


def test_dpm_solver_is_exact_for_one_datum() -> None:
    """Fault: a wrong factor in either term; data that is the same everywhere leaves noise alone."""
    data, eps = torch.tensor(0.8), torch.tensor(-1.3)

    def place(t: float) -> tuple[float, float]:
        return 1 - t, t

    for t, s in ((1.0, 0.6), (0.6, 0.1), (0.6, 0.0)):
        now = Evaluation(t, eps, data)
        past = None if t == 1 else Evaluation(1.0, eps, data)
        x = dpm_solver_2m(now, past, (1 - t) * data + t * eps, s, place)
        torch.testing.assert_close(x, (1 - s) * data + s * eps)


def test_dpm_solver_is_the_papers() -> None:
    """Fault: r upside down. Algorithm 2 of DPM-Solver++, written out with its logarithms."""
    t0, t1, t2 = 0.8, 0.5, 0.3
    d0, d1, x = torch.tensor(0.2), torch.tensor(0.5), torch.tensor(0.1)
    lam = [math.log((1 - t) / t) for t in (t0, t1, t2)]
    h0, h1 = lam[1] - lam[0], lam[2] - lam[1]
    r = h0 / h1
    D = (1 + 1 / (2 * r)) * d1 - 1 / (2 * r) * d0
    expected = t2 / t1 * x - (1 - t2) * math.expm1(-h1) * D
    past, now = Evaluation(t0, d0, d0), Evaluation(t1, d1, d1)
    found = dpm_solver_2m(now, past, x, t2, lambda t: (1 - t, t))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("solver", ["ab2", "dpm++2m"])
def test_few_steps_beat_euler(solver: str) -> None:
    """Fault: a solver whose order shows only at steps nobody takes: 10 evaluations are enough."""
    network, noise = DATA.network("linear", "velocity"), states()
    exact = DATA.mean + DATA.std * noise

    def error(name: str) -> float:
        *_, (_, x) = Flow().sample(network, noise, Y, Ode(solver=name, steps=10))
        return float((x - exact).abs().max())

    assert error(solver) < 0.35 * error("euler")


def test_shift_is_sd3s() -> None:
    """Fault: the inverse shift, or ends that move (SD3 eq. 23)."""
    assert shifted(0.5, 3.0) == 0.75
    assert [shifted(t, 3.0) for t in (0.0, 1.0)] == [0.0, 1.0]
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shifted(shifted(t, 2.3), 1 / 2.3), t)
    assert natural_shift((4, 32, 32)) == 1.0
    assert natural_shift((4, 64, 64)) == 2.0


def test_shifted_grid() -> None:
    """Fault: ends that are not exact, a grid that goes up, or a default that changed its bits."""
    interval = Interval(1 - 1e-5, 1e-5)
    for shift in (0.4, 1.0, 3.0):
        grid = time_grid(interval, 7, shift)
        assert (grid[0], grid[-1], len(grid)) == (1 - 1e-5, 1e-5, 8)
        assert grid == sorted(grid, reverse=True)
    assert time_grid(Interval(1.0, 0.0), 4, 3.0)[2] == pytest.approx(0.75)
    assert time_grid(interval, 7, 1.0) == time_grid(interval, 7)


def test_training_times() -> None:
    """Fault: a mean of the wrong sign, a shift the other way, other uniform draws than before."""
    flow, number = Flow(), 200_000

    def draw(**options) -> torch.Tensor:
        random = torch.Generator().manual_seed(1)
        return flow.draw_times(number, random, Times(**options))

    plain = torch.rand(number, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(draw(), plain, rtol=0, atol=0)
    tilted = draw(distribution="logit-normal", mean=0.5, std=0.8)
    # P(sigmoid(n) < 1/2) = Phi(-mean / std); the median is sigmoid(mean).
    below = 0.5 * (1 + math.erf(-0.5 / 0.8 / math.sqrt(2)))
    assert float((tilted < 0.5).float().mean()) == pytest.approx(below, abs=4e-3)
    assert float(tilted.median()) == pytest.approx(1 / (1 + math.exp(-0.5)), abs=4e-3)
    # Under uniform draws P(t' < a) is the inverse shift of a.
    moved = draw(shift=3.0)
    assert float((moved < 0.75).float().mean()) == pytest.approx(0.5, abs=4e-3)
    score = Flow(prediction="score").draw_times(
        number, torch.Generator().manual_seed(1), Times(distribution="logit-normal", std=5.0)
    )
    assert 1e-3 - 1e-6 <= float(score.min()) <= float(score.max()) <= 1 - 1e-3 + 1e-6
