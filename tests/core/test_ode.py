"""ODE solvers against closed forms for Gaussian data: orders, ends, and dopri5."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import RK45

from sitcli import names
from sitcli.commands.sample.options import CHOICES, OPTIONS
from sitcli.core.flow import Flow, Ode
from sitcli.core.intervals import Interval, ode_interval
from sitcli.core.ode import (
    ADAPTIVE,
    MULTISTEPS,
    ODE_STEPS,
    Evaluation,
    adams_bashforth_2,
    dpm_solver_2m,
    solve_dopri5,
    solve_multistep,
    solve_ode,
)
from tests.core.cases import pairs_first
from tests.core.exact import propagated
from tests.core.gaussian import Gaussian

DATA = Gaussian(mean=0.7, std=0.6)
Y = torch.zeros(3, dtype=torch.long)


def states(number: int = 3) -> torch.Tensor:
    return torch.linspace(-1.5, 2.0, number, dtype=torch.float64).view(number, 1, 1, 1)


def exact_ode(interpolant: str, x: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """The probability flow of a Gaussian keeps the standardised coordinate."""
    (m, d), (n, e) = DATA.marginal(interpolant, t), DATA.marginal(interpolant, s)
    return n + e * (x - m) / d


@pytest.mark.parametrize("solver", ODE_STEPS)
def test_measured_order(solver: str) -> None:
    """Catches: a solver that takes N-1 steps, or a wrong stage, converges at another order."""
    interval, x = Interval(0.95, 0.05), states()

    def velocity(x, t):
        return Flow(interpolant="gvp").velocity(
            DATA.network("gvp", "velocity"), x, Y, x.new_full((3,), t)
        )

    def error(steps: int) -> float:
        *_, (_, end) = solve_ode(velocity, None, x, interval, solver=solver, steps=steps)
        return float((end - exact_ode("gvp", x, *interval[:2])).abs().max())

    order = math.log2(error(40) / error(80))
    assert abs(order - ODE_STEPS[solver].order) < 0.1


@pytest.mark.parametrize(
    ("interpolant", "prediction", "solver"),
    pairs_first(
        names.INTERPOLANTS, names.PREDICTIONS, names.ODE_SOLVERS, prediction="velocity",
        solver="heun",
    ),
)  # fmt: skip
def test_ode_reaches_the_data(interpolant: str, prediction: str, solver: str) -> None:
    """Catches: a NaN or a wrong end of the interval for some interpolant, prediction, solver."""
    flow = Flow(interpolant=interpolant, prediction=prediction)
    steps = {"euler": 800, "heun": 100, "rk4": 50, "ab2": 200, "dpm++2m": 200}.get(solver, 1)
    ode = Ode(solver=solver, steps=steps, rtol=1e-6, atol=1e-6)
    noise = states()
    *_, (t, x) = flow.sample(DATA.network(interpolant, prediction), noise, Y, ode)
    start, end, _, scale, _ = flow.ode_interval()
    assert t == pytest.approx(end, abs=1e-12)
    expected = exact_ode(interpolant, scale * noise, start, 0.0)
    torch.testing.assert_close(x, expected, atol=0.01, rtol=0)


def test_dopri5_equals_torchdiffeq_sample_by_sample() -> None:
    """Catches: a wrong tableau entry, or a step size shared by the batch."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    flow, network, noise = Flow(interpolant="gvp"), DATA.network("gvp", "velocity"), states()
    interval = ode_interval("gvp", "velocity")
    *_, (_, x) = flow.sample(network, noise, Y, Ode(solver="dopri5", rtol=1e-8, atol=1e-8))
    theirs = torchdiffeq.odeint(
        lambda t, x: flow.velocity(network, x, Y, t.expand(len(x)).to(x.dtype)),
        noise,
        torch.tensor(interval[:2], dtype=torch.float64),
        rtol=1e-10,
        atol=1e-10,
        method="dopri5",
    )[-1]
    torch.testing.assert_close(x, theirs, atol=2e-6, rtol=0)


class Recorder:
    """The velocity of x' = 3 x^3 + cos(20 t), with every evaluation of it on record."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float, float]] = []  # t, x, velocity

    def __call__(self, x, t, rows):
        v = 3 * x**3 + torch.cos(20 * t.view(-1, 1))
        self.calls.append((float(t), float(x), float(v)))
        return v


def test_dopri5_is_dormand_and_princes_pair() -> None:
    """Catches: a wrong entry of the tableau, an accepted step beyond the tolerance, or another rule
    for the next one.

    The coefficients are scipy's RK45 (Dormand and Prince 1980). A step of error ratio r is accepted
    for r <= 1. The next is 0.9 r^(-1/5) times as long, within 0.2 and 10, no shorter after a step
    that was accepted and no longer after one that was not (Hairer, Norsett and Wanner II.4).
    """
    nodes, rows = RK45.C.tolist(), RK45.A.tolist()
    weights, error_weights = RK45.B.tolist(), RK45.E.tolist()
    rtol, atol, velocity = 1e-5, 1e-6, Recorder()
    x0 = torch.full((1, 1), 0.7, dtype=torch.float64)
    *_, (_, end) = solve_dopri5(velocity, None, x0, Interval(1.0, 0.0), rtol=rtol, atol=atol)
    (t, x, k1), *rest = velocity.calls
    h, accepted, rejected = 0.01, 0, 0
    for start in range(0, len(rest), 6):
        stages, slopes = rest[start : start + 6], [k1]
        for i in range(1, 6):
            moved = x - h * sum(a * k for a, k in zip(rows[i], slopes, strict=False))
            # The error is a difference that loses digits, and the step's length follows it.
            assert stages[i - 1][:2] == pytest.approx((t - nodes[i] * h, moved), rel=1e-6)
            slopes.append(stages[i - 1][2])
        moved = x - h * sum(b * k for b, k in zip(weights, slopes, strict=True))
        assert stages[5][:2] == pytest.approx((t - h, moved), rel=1e-6, abs=1e-9)
        slopes.append(stages[5][2])
        error = h * sum(e * k for e, k in zip(error_weights, slopes, strict=True))
        ratio = abs(error) / (atol + rtol * max(abs(x), abs(moved)))
        factor = min(10.0, max(0.2, 0.9 * ratio**-0.2))
        if ratio <= 1:
            accepted += 1
            t, x, k1, factor = t - h, moved, slopes[6], max(1.0, factor)
        else:
            rejected += 1
            factor = min(1.0, factor)
        h = min(h * factor, t)
    assert t == pytest.approx(0.0, abs=1e-9)
    assert float(end) == pytest.approx(x, rel=1e-6)
    assert min(accepted, rejected) > 0


def test_dopri5_bounds_the_change_of_its_step() -> None:
    """Catches: a step that grows more than tenfold where nothing changes, or shrinks to less than a
    fifth where much does."""
    velocity = Recorder()
    velocity_of_nothing = lambda x, t, rows: velocity(x, t, rows) * 0  # noqa: E731
    x0 = torch.ones(1, 1, dtype=torch.float64)
    list(solve_dopri5(velocity_of_nothing, None, x0, Interval(1.0, 0.0), rtol=1e-3, atol=1e-3))
    ends = [t for t, _, _ in velocity.calls[6::6]]
    assert ends == pytest.approx([0.99, 0.89, 0.0], abs=1e-12)  # steps 0.01, 0.1 and what is left

    def jump(x, t, rows):
        velocity.calls.append((float(t), 0.0, 0.0))
        return torch.where(t.view(-1, 1) < 0.995, 1e6, 0.0).to(x)

    velocity.calls.clear()
    solving = solve_dopri5(jump, None, x0, Interval(1.0, 0.0), rtol=0.0, atol=1e-3)
    next(solving)
    next(solving)
    assert velocity.calls[6][0] == pytest.approx(0.99)
    assert velocity.calls[12][0] == pytest.approx(1 - 0.2 * 0.01)


def test_dopri5_gives_up_in_the_end() -> None:
    """Catches: a solve that never ends, and one that gives up early. 600 equal trials of 6
    evaluations need 3,601 of the 10,000 that are allowed by default."""
    x0 = torch.ones(1, 1, dtype=torch.float64)
    noise = torch.Generator().manual_seed(0)
    rough = lambda x, t, rows: torch.randn(1, 1, generator=noise, dtype=x.dtype) * 1e3  # noqa: E731
    with pytest.raises(ArithmeticError, match="within 10003 evaluations"):
        list(solve_dopri5(rough, None, x0, Interval(1.0, 0.0), rtol=1e-8, atol=1e-8))


def test_dopri5_samples_are_independent() -> None:
    """Catches: an error norm over the whole batch, which couples every sample to its mates."""

    def velocity(x, t, rows):
        return torch.sin((5 + 20 * rows.view(-1, 1)) * t.view(-1, 1)) * x

    start = torch.ones(3, 1, dtype=torch.float64)
    options = dict(rtol=1e-4, atol=1e-4)
    *_, (_, together) = solve_dopri5(velocity, None, start, Interval(1.0, 0.0), **options)
    for i in range(3):
        only = lambda x, t, rows, i=i: velocity(x, t, rows + i)  # noqa: E731
        *_, (_, alone) = solve_dopri5(only, None, start[:1], Interval(1.0, 0.0), **options)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("std", [0.5, 1.0])
@pytest.mark.parametrize("prediction", names.PREDICTIONS)
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_defaults_keep_the_datas_standard_deviation(
    interpolant: str, prediction: str, std: float
) -> None:
    """Catches: default ends or steps with which a solver widens or narrows the data by over 2%."""
    flow, data = Flow(interpolant=interpolant, prediction=prediction), Gaussian(0.3 * std, std)
    for solver in names.ODE_SOLVERS:
        defaults = OPTIONS["ode"] | CHOICES.get(("solver", solver), {})
        steps = defaults["steps"] if solver not in ADAPTIVE else 1
        ode = Ode(solver=solver, steps=steps)
        mean, found = propagated(flow, ode, data)
        assert abs(found / std - 1) < 0.02, solver
        assert abs(mean - data.mean) < 0.02 * std, solver


@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize("solver", MULTISTEPS)
def test_measured_order_of_multistep_solvers(solver: str, shift: float) -> None:
    """Catches: a weight of the past that fits equal steps alone, or a past that is never used."""
    flow, interval, x = Flow(interpolant="gvp"), Interval(0.9, 0.3), states()
    network = DATA.network("gvp", "velocity")

    def evaluate(x, t):
        times = x.new_full((3,), t)
        path = flow.path(times, x)
        v = network(x, times, Y)
        return Evaluation(t, v, (path.d_sigma * x - path.sigma * v) / path.W)

    def error(steps: int) -> float:
        *_, (_, end) = solve_multistep(
            evaluate, flow.alpha_sigma, x, interval, solver=solver, steps=steps, shift=shift
        )
        (m, d), (n, e) = (DATA.marginal("gvp", t) for t in interval[:2])
        return float((end - (n + e * (x - m) / d)).abs().max())

    assert abs(math.log2(error(160) / error(320)) - MULTISTEPS[solver].order) < 0.1


def test_adams_bashforth_is_exact_for_linear_velocities() -> None:
    """Catches: the two-step weights of equal steps where steps differ."""

    def at(t: float) -> Evaluation:
        return Evaluation(t, torch.tensor(2.0 + 3.0 * t), torch.tensor(0.0))

    x = adams_bashforth_2(at(0.7), at(0.9), torch.tensor(1.0), 0.4, lambda t: (1 - t, t))
    exact = 1.0 - (2.0 * (0.7 - 0.4) + 1.5 * (0.7**2 - 0.4**2))
    assert float(x) == pytest.approx(exact, abs=1e-6)


def test_dpm_solver_is_exact_for_one_datum() -> None:
    """Catches: a wrong factor in either term; data that is the same everywhere leaves noise
    alone."""
    data, eps = torch.tensor(0.8), torch.tensor(-1.3)

    def alpha_sigma(t: float) -> tuple[float, float]:
        return 1 - t, t

    for t, s in ((1.0, 0.6), (0.6, 0.1), (0.6, 0.0)):
        now = Evaluation(t, eps, data)
        past = None if t == 1 else Evaluation(1.0, eps, data)
        x = dpm_solver_2m(now, past, (1 - t) * data + t * eps, s, alpha_sigma)
        torch.testing.assert_close(x, (1 - s) * data + s * eps)


def test_dpm_solver_is_the_papers() -> None:
    """Catches: r upside down. Algorithm 2 of DPM-Solver++, written out with its logarithms."""
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
    """Catches: a solver whose order shows only at steps nobody takes: 10 evaluations are enough."""
    network, noise = DATA.network("linear", "velocity"), states()
    exact = DATA.mean + DATA.std * noise

    def error(name: str) -> float:
        *_, (_, x) = Flow().sample(network, noise, Y, Ode(solver=name, steps=10))
        return float((x - exact).abs().max())

    assert error(solver) < 0.35 * error("euler")
