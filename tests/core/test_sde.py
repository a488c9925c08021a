"""SDE solvers, propagated exactly through Gaussian data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sitcli import names
from sitcli.commands.sample.options import CHOICES, OPTIONS
from sitcli.core.flow import Flow, Sde
from sitcli.core.interpolant import path_at
from sitcli.core.intervals import Interval, sde_interval
from sitcli.core.ode import ODE_STEPS
from sitcli.core.sde import SDE_STEPS, Drift
from sitcli.core.times import time_grid
from sitcli.core.wt import WT, LossCurve, wt_of
from tests.core.cases import pairs_first
from tests.core.gaussian import Gaussian

DATA = Gaussian(mean=0.7, std=0.6)
LOSS_CURVE = LossCurve(values=(0.5, 0.3, 0.2, 0.4))
Y = torch.zeros(3, dtype=torch.long)


def states(number: int = 3) -> torch.Tensor:
    return torch.linspace(-1.5, 2.0, number, dtype=torch.float64).view(number, 1, 1, 1)


def propagate(
    flow: Flow, sde: Sde, network, visited: list[float] | None = None
) -> tuple[float, float]:
    """Mean and variance after the whole solve, exactly: each step is affine in (x, z).

    visited receives the standard deviation after each noisy step, over the marginal's.
    """
    # Three probes share every step: (x, z) = (0, 0), (1, 0), (0, 1).
    size = flow.last_step_size if sde.last_step_size is None else sde.last_step_size
    interval = flow.sde_interval(sde.wt, 0.0 if sde.last_step == "none" else size)
    noisy = sde.steps if sde.last_step == "none" else sde.steps - 1

    def drift(x, t):
        return flow.drift(network, x, Y, x.new_full((len(x),), t), sde)

    x = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    mean, variance = 0.0, interval.scale**2
    for t, s in itertools.pairwise(time_grid(interval, noisy)):
        c, a, b = SDE_STEPS[sde.solver].step(drift, x, t, s, z).flatten().tolist()
        mean, variance = (a - c) * mean + c, (a - c) ** 2 * variance + (b - c) ** 2
        if visited is not None:
            visited.append(variance**0.5 / DATA.marginal(flow.interpolant, s)[1])
    if sde.last_step != "none":
        from sitcli.core.sde import LAST_STEPS

        c, a, _ = LAST_STEPS[sde.last_step].step(drift, x, interval.end).flatten().tolist()
        mean, variance = (a - c) * mean + c, (a - c) ** 2 * variance
    return mean, variance


@pytest.mark.parametrize(
    ("interpolant", "prediction", "wt"),
    pairs_first(
        names.INTERPOLANTS, names.PREDICTIONS, names.WTS, prediction="velocity", solver="sigma"
    ),
)
def test_marginal_does_not_depend_on_w(interpolant: str, prediction: str, wt: str) -> None:
    """Catches: a score or w_t off by a factor: the SDE would then have other marginals."""
    flow = Flow(interpolant=interpolant, prediction=prediction)
    w = wt_of(wt, eta=0.1, loss_curve=LOSS_CURVE)
    network = DATA.network(interpolant, prediction)
    sde = Sde(w=w, wt=wt, solver="euler-maruyama", steps=1200, last_step="none")
    mean, variance = propagate(flow, sde, network)
    end = sde_interval(interpolant, prediction, wt, 0.0).end
    expected = DATA.marginal(interpolant, end)
    assert mean == pytest.approx(expected[0], abs=0.02)
    assert variance**0.5 == pytest.approx(expected[1], abs=0.02)


@pytest.mark.parametrize("steps", [20, 250])
@pytest.mark.parametrize("solver", names.SDE_SOLVERS)
@pytest.mark.parametrize("wt", names.WTS)
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_the_state_never_overshoots(interpolant: str, wt: str, solver: str, steps: int) -> None:
    """Catches: an unstable first step: w_KL h > 2 near t = 1 widens the state up to 50 times."""
    w = wt_of(wt, eta=0.1, loss_curve=LOSS_CURVE)
    sde = Sde(w=w, wt=wt, solver=solver, steps=steps)
    visited: list[float] = []
    propagate(Flow(interpolant=interpolant), sde, DATA.network(interpolant, "velocity"), visited)
    assert max(visited) < 1.25  # w h = 1 leaves explicit steps 1.15 times too wide


@pytest.mark.parametrize(
    ("wt", "solver"),
    [*((wt, "euler-maruyama") for wt in names.WTS), ("kl", "heun"), ("sigma", "heun")],
)
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_defaults_keep_the_datas_standard_deviation(interpolant: str, wt: str, solver: str) -> None:
    """Catches: a last step as long as on linear where sigma is larger (9% less on vp), or one that
    follows a w_t which is not 0 at the data (9% less on linear)."""
    w = wt_of(wt, eta=0.1, loss_curve=LOSS_CURVE)
    default = CHOICES.get(("wt", wt), {}).get("last_step", OPTIONS["sde"]["last_step"])
    for last_step in (default, "none"):
        sde = Sde(w=w, wt=wt, solver=solver, steps=250, last_step=last_step)
        network = DATA.network(interpolant, "velocity")
        mean, variance = propagate(Flow(interpolant=interpolant), sde, network)
        assert abs(variance**0.5 / DATA.std - 1) < 0.02, last_step
        assert abs(mean - DATA.mean) < 0.02 * DATA.std, last_step


@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_which_w_may_end_with_the_mean(interpolant: str) -> None:
    """Catches: a row of WT that says of itself that it vanishes at the data, and does not."""
    t = torch.tensor([1e-6], dtype=torch.float64)
    for name, row in WT.items():
        w = float(wt_of(name, eta=0.1, loss_curve=LOSS_CURVE)(t, path_at(interpolant, t, t)))
        # vp's w_KL is beta_t, which is 0.1 at the data and 20 at the noise.
        assert (w < 0.11) == row.vanishes_at_data, name


@pytest.mark.parametrize("solver", names.SDE_SOLVERS)
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler"])
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_last_step_lands_near_the_data(interpolant: str, last_step: str, solver: str) -> None:
    """Catches: a last step of the wrong length or sign leaves the residual noise or adds to it."""
    sde = Sde(
        w=wt_of("sigma"),
        wt="sigma",
        solver=solver,
        steps=1000,
        last_step=last_step,
        last_step_size=0.02,
    )
    flow = Flow(interpolant=interpolant)
    mean, variance = propagate(flow, sde, DATA.network(interpolant, "velocity"))
    assert mean == pytest.approx(DATA.mean, abs=0.02)
    assert variance**0.5 == pytest.approx(DATA.std, abs=0.02)


@pytest.mark.parametrize(
    ("sde_solver", "ode_solver"), [("euler-maruyama", "euler"), ("heun", "heun")]
)
def test_without_noise_the_sde_is_the_ode(sde_solver: str, ode_solver: str) -> None:
    """Catches: any term that does not vanish with w: the two must agree bit for bit."""
    flow, network, x = Flow(interpolant="gvp"), DATA.network("gvp", "velocity"), states().float()
    sde = Sde(w=wt_of("sigma", scale=0.0), wt="sigma", solver=sde_solver)

    def drift(x, t):
        return flow.drift(network, x, Y, x.new_full((3,), t), sde)

    stochastic = SDE_STEPS[sde_solver].step(drift, x, 0.6, 0.5, torch.randn_like(x))
    ode = ODE_STEPS[ode_solver].step(
        lambda x, t: flow.velocity(network, x, Y, x.new_full((3,), t)), x, 0.6, 0.5
    )
    assert torch.equal(stochastic, ode)


def test_stochastic_heun_is_weakly_second_order() -> None:
    """Catches: noise added after the corrector, which leaves the variance first order."""
    flow, network = Flow(interpolant="linear"), DATA.network("linear", "velocity")
    exact = DATA.marginal("linear", 0.3)

    def error(steps: int) -> float:
        sde = Sde(w=wt_of("sigma"), wt="sigma", solver="heun", steps=steps)
        drift = lambda x, t: flow.drift(network, x, Y, x.new_full((3,), t), sde)  # noqa: E731
        x = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
        z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
        mean, variance = DATA.marginal("linear", 0.9)
        variance **= 2
        for t, s in itertools.pairwise(time_grid(Interval(0.9, 0.3), steps)):
            c, a, b = SDE_STEPS["heun"].step(drift, x, t, s, z).flatten().tolist()
            mean, variance = (a - c) * mean + c, (a - c) ** 2 * variance + (b - c) ** 2
        return abs(variance - exact[1] ** 2)

    assert abs(math.log2(error(40) / error(80)) - 2) < 0.2


def test_one_step_of_kl_is_finite() -> None:
    """Catches: a last step with w_KL at its beginning, infinite on linear and gvp."""
    for interpolant in names.INTERPOLANTS:
        sde = Sde(w=wt_of("kl"), wt="kl", steps=1)
        flow, network = Flow(interpolant=interpolant), DATA.network(interpolant, "velocity")
        *_, (_, x) = flow.sample(network, states(), Y, sde)
        assert float(x.abs().max()) < 5


def test_drift_is_the_reverse_sde() -> None:
    """Catches: the sign of the score term (SiT eq. 10: v - w score / 2 in forward time)."""
    one = torch.ones(1)
    drift = Drift(velocity=3 * one, score=2 * one, data=one, w=4 * one)
    assert drift.sde.item() == -1.0


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("last_step", names.LAST_STEPS)
def test_steps_are_counted_with_the_last_one(steps: int, last_step: str) -> None:
    """Catches: one step more or less, a shifted grid by default, or a last step from another time
    than where the noisy ones ended."""
    flow, sde = Flow(), Sde(w=wt_of("sigma"), wt="sigma", steps=steps, last_step=last_step)
    network = DATA.network("linear", "velocity")
    taken = [t for t, _ in flow.sample(network, states(), Y, sde, randn=states)]
    end, noisy = (1e-3, steps) if last_step == "none" else (0.04, steps - 1)
    expected = [1 + (end - 1) * (i + 1) / noisy for i in range(noisy)]
    assert taken == pytest.approx(expected + [0.0] * (last_step != "none"))
