"""Every process x prediction x solver x w_t x last step, on data whose exact network is known.

On a Gaussian every step is affine in state and noise, so mean and variance are propagated exactly;
on a mixture they are estimated from samples. SiT Table 10's intervals are what is at stake: one
division by zero at an end is a NaN here.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sitcli import names
from sitcli.core.diffusion import Ddim, Ddpm, Diffusion
from sitcli.core.flow import Flow, Ode, Sde
from sitcli.core.wt import LossCurve, wt_of
from tests.core.exact import exact_network, propagated
from tests.core.gaussian import Gaussian
from tests.core.mixture import Mixture

GAUSSIAN, MIXTURE = Gaussian(mean=0.7, std=0.6), Mixture()
PROCESSES = {name: Flow(interpolant=name) for name in names.INTERPOLANTS}


PROCESSES |= {f"ddpm-{name}": Diffusion(betas=name, variance="fixed-small") for name in names.BETAS}


LOSS_CURVE = LossCurve(values=(0.5, 0.3, 0.2, 0.4))
LAST_STEP_SIZE = 0.01


def samplers(process: Flow) -> dict[str, Ode | Sde | Ddpm | Ddim]:
    """Name -> everything that `sit sample` can be told to do with this process."""
    # Evaluations are what a test costs: first-order solvers take more steps.
    ode_steps = {"euler": 120, "heun": 40, "rk4": 25, "ab2": 80, "dpm++2m": 80, "dopri5": 1}
    found: dict = {
        f"ode {name}": Ode(solver=name, steps=ode_steps[name], rtol=1e-4, atol=1e-4)
        for name in names.ODE_SOLVERS
    }
    for solver in names.SDE_SOLVERS:
        for wt in names.WTS:
            w = wt_of(wt, eta=0.1, loss_curve=LOSS_CURVE)
            for last in names.LAST_STEPS:
                found[f"sde {solver} {wt} {last}"] = Sde(
                    w=w,
                    wt=wt,
                    solver=solver,
                    steps=160 if solver == "euler-maruyama" else 64,
                    last_step=last,
                    last_step_size=LAST_STEP_SIZE,
                )
    if isinstance(process, Diffusion):
        found |= {"ddpm": Ddpm(steps=300)}
        found |= {f"ddim {eta:g}": Ddim(steps=120, eta=eta) for eta in (0.0, 0.5, 1.0)}
    return found


CASES = [
    pytest.param(process, prediction, sampler, id=f"{process}-{prediction}-{sampler}")
    for process in PROCESSES
    for prediction in names.PREDICTIONS
    for sampler in samplers(PROCESSES[process])
]


def build(process: str, prediction: str) -> Flow:
    found = PROCESSES[process]
    if isinstance(found, Diffusion):
        return Diffusion(betas=found.betas, variance=found.variance, prediction=prediction)
    return Flow(interpolant=process, prediction=prediction)


@pytest.mark.parametrize(("process", "prediction", "sampler"), CASES)
def test_the_data_are_reached(process: str, prediction: str, sampler: str) -> None:
    """Catches: a NaN, a wrong sign, factor or end of an interval in any combination that the
    command line accepts."""
    flow = build(process, prediction)
    solver = samplers(flow)[sampler]
    mean, std = propagated(flow, solver, GAUSSIAN)
    assert mean == pytest.approx(GAUSSIAN.mean, abs=0.02)
    assert std == pytest.approx(GAUSSIAN.std, abs=0.03)

    random = torch.Generator().manual_seed(0)
    shape = (2000, 2, 1, 1)

    def randn() -> torch.Tensor:
        return torch.randn(shape, generator=random)

    if getattr(solver, "solver", "") != "dopri5":
        solver = dataclasses.replace(solver, steps=solver.steps // 2)  # the samples tell no more
    y = torch.zeros(shape[0], dtype=torch.long)
    *_, (_, x) = flow.sample(exact_network(flow, MIXTURE), randn(), y, solver, randn=randn)
    mean, variance = MIXTURE.moments()
    assert bool(torch.isfinite(x).all())
    found = x.flatten(1).double()
    # Four standard errors of 2,000 samples, and the solver's own error.
    torch.testing.assert_close(found.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(found.var(0), variance, atol=0.1, rtol=0)
