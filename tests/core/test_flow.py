"""The flow's samplers: steps and network evaluations."""

from __future__ import annotations

import torch

from sitcli.core.flow import Flow, Ode, Sde
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.wt import wt_of
from tests.core.gaussian import Gaussian

DATA = Gaussian(mean=0.7, std=0.6)
Y = torch.zeros(3, dtype=torch.long)


def states(number: int = 3) -> torch.Tensor:
    return torch.linspace(-1.5, 2.0, number, dtype=torch.float64).view(number, 1, 1, 1)


def test_steps_and_evaluations_are_exact() -> None:
    """Catches: `steps` meaning N-1 steps, or an SDE step that evaluates the network twice."""
    for solver, steps, spent in [
        ("euler", 7, 7),
        ("heun", 7, 14),
        ("rk4", 3, 12),
        ("ab2", 7, 7),
        ("dpm++2m", 7, 7),
    ]:
        network = GuidedNetwork(
            DATA.network("linear", "velocity"), Guidance(scale=1.0, channels=None, null_class=0)
        )
        taken = list(Flow().sample(network, states(), Y, Ode(solver=solver, steps=steps)))
        assert len(taken) == steps
        assert network.evaluations == 3 * spent
    for solver, last_step, spent in [
        ("euler-maruyama", "mean", 10),
        ("euler-maruyama", "none", 10),
        ("heun", "tweedie", 19),
    ]:
        network = GuidedNetwork(
            DATA.network("linear", "velocity"), Guidance(scale=1.0, channels=None, null_class=0)
        )
        sde = Sde(w=wt_of("sigma"), wt="sigma", solver=solver, steps=10, last_step=last_step)
        taken = list(Flow().sample(network, states(), Y, sde, randn=states))
        assert len(taken) == 10
        assert network.evaluations == 3 * spent
