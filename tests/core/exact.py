"""Perfectly trained networks of any process, and exact propagation through any sampler."""

from __future__ import annotations

import math

import torch

from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow, Ode
from sitcli.core.prediction import PREDICTIONS
from tests.core.gaussian import Gaussian
from tests.core.mixture import Mixture


def exact_network(process: Flow, data: Gaussian | Mixture):
    """What a perfect network of this process outputs; a learned variance is the posterior's."""
    discrete = isinstance(process, Diffusion)

    def network(x, time, y):
        t = (time.double() + 1) / len(process.chain) if discrete else time.double()
        path = process.path(t, x)
        if process.prediction == "score":
            output = data.score(x, path)  # -eps/sigma is 0/0 at t = 0
        else:
            output = PREDICTIONS[process.prediction].encode(*data.posterior(x, path), path)
        if discrete and process.variance == "learned-range":
            return torch.cat([output, torch.full_like(output, -1.0)], dim=1)
        return output

    return network


def propagated(process: Flow, sampler, data: Gaussian) -> tuple[float, float]:
    """Mean and standard deviation at the end, exactly, of N(0, 1) at the start.

    Every step is affine in state and noise: row 0 is the constant, row 1 follows the state, the
    rest follow one step's noise each.
    """
    noisy = 0 if isinstance(sampler, Ode) else sampler.steps
    x = torch.zeros(noisy + 2, 1, 1, 1, dtype=torch.float64)
    x[1] = 1.0
    step = iter(range(2, noisy + 2))

    def randn() -> torch.Tensor:
        z = torch.zeros_like(x)
        z[next(step)] = 1.0
        return z

    y = torch.zeros(len(x), dtype=torch.long)
    *_, (_, end) = process.sample(exact_network(process, data), x, y, sampler, randn=randn)
    constant, *gains = end.flatten().tolist()
    return constant, math.hypot(*(gain - constant for gain in gains))
