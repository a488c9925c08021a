"""The ODE between data and noise, both ways, against closed forms for Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli import names
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow, Ode
from sitcli.core.ode import ODE_STEPS
from sitcli.core.transport import ends_of, times_between, to_data, to_noise
from tests.core.cases import pairs_first
from tests.core.gaussian import Gaussian

DATA = Gaussian(mean=0.3, std=0.4)
Y = torch.zeros(5, dtype=torch.long)
X = DATA.mean + DATA.std * torch.linspace(-2, 2, 5, dtype=torch.float64).view(5, 1, 1, 1)


def last(steps) -> torch.Tensor:
    *_, (_, x) = steps
    return x


def noise_of(interpolant: str, x: torch.Tensor) -> torch.Tensor:
    """The probability flow of a Gaussian keeps the standardised coordinate."""
    mean, std = DATA.marginal(interpolant, 1.0)
    return mean + std * (x - DATA.mean) / DATA.std


@pytest.mark.parametrize(
    ("interpolant", "prediction", "solver"),
    pairs_first(
        names.INTERPOLANTS, names.PREDICTIONS, names.MAP_SOLVERS, prediction="velocity",
        solver="heun",
    ),
)  # fmt: skip
def test_there_and_back(interpolant: str, prediction: str, solver: str) -> None:
    """Catches: a NaN or a wrong end at either side, or a way back that is not the inverse."""
    flow, network = Flow(interpolant=interpolant, prediction=prediction), DATA.network
    network = network(interpolant, prediction)
    steps = {"euler": 1000, "heun": 60, "rk4": 30}.get(solver, 1)
    ode = Ode(solver=solver, steps=steps, rtol=1e-6, atol=1e-6)
    ends = ends_of(flow)
    noise = last(to_noise(flow, network, X, Y, ode, ends))
    torch.testing.assert_close(noise, noise_of(interpolant, X), atol=0.02, rtol=0)
    back = last(to_data(flow, network, noise, Y, ode, ends))
    torch.testing.assert_close(back, X, atol=0.01, rtol=0)


@pytest.mark.parametrize("solver", ODE_STEPS)
def test_round_trip_converges_at_the_solvers_order(solver: str) -> None:
    """Catches: a step that is of another order when time goes up, or a grid with a kink."""
    flow, network = Flow(interpolant="gvp"), DATA.network("gvp", "velocity")

    def error(steps: int) -> float:
        ode = Ode(solver=solver, steps=steps)
        noise = last(to_noise(flow, network, X, Y, ode, ends_of(flow)))
        return float((last(to_data(flow, network, noise, Y, ode, ends_of(flow))) - X).abs().max())

    # What is left of one way's error after the other is at least of the solver's order.
    assert math.log2(error(80) / error(160)) > ODE_STEPS[solver].order - 0.1


def test_the_discrete_process_has_the_same_map() -> None:
    """Catches: an ODE that takes DiT's integer steps for times."""
    process = Diffusion()
    path = process.path(torch.ones(1).double(), X)

    def network(x, k, y):
        at = process.path((k + 1) / 1000, x)
        return DATA.posterior(x, at)[1]

    ode = Ode(solver="heun", steps=100)
    ends = ends_of(process)
    noise = last(to_noise(process, network, X, Y, ode, ends))
    std = float((path.alpha**2 * DATA.std**2 + path.sigma**2).sqrt())
    expected = path.alpha * DATA.mean + std * (X - DATA.mean) / DATA.std
    torch.testing.assert_close(noise, expected, atol=0.02, rtol=0)
    back = last(to_data(process, network, noise, Y, ode, ends))
    torch.testing.assert_close(back, X, atol=2e-3, rtol=0)


@pytest.mark.parametrize("solver", names.MAP_SOLVERS)
def test_no_sample_depends_on_its_batch(solver: str) -> None:
    """Catches: labels or rows mixed up where samples end at different times."""
    flow, ode = Flow(), Ode(solver=solver, steps=5)
    y = torch.arange(5)

    def network(x, t, y):
        return torch.sin((1 + 3 * y.view(-1, 1, 1, 1)) * t.view(-1, 1, 1, 1)) * x

    together = last(to_noise(flow, network, X, y, ode, ends_of(flow)))
    for i in range(5):
        alone = last(to_noise(flow, network, X[i : i + 1], y[i : i + 1], ode, ends_of(flow)))
        assert torch.equal(alone[0], together[i])


def test_times_and_ends() -> None:
    """Catches: an end that is not exact, or a jump interval entered where the velocity is 0/0."""
    times = times_between(ends_of(Flow(interpolant="vp")), 7)
    assert (times[0], times[-1], len(times)) == (1e-5, 1.0, 8)
    assert times == sorted(times)
    assert ends_of(Flow()) == (0.0, 1.0, 1.0, 1.0)
    jumps = ends_of(Flow(prediction="data"))
    assert jumps.data == pytest.approx(1e-3)
    assert jumps.alpha == pytest.approx(1 - 1e-3)
