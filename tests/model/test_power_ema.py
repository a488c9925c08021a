"""Averages of power-function profile: their weights in closed form, and one made of others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sitcli.model.ema import ShardedEma
from sitcli.model.power_ema import (
    Snapshot,
    overlap,
    posthoc_coefficients,
    posthoc_error,
    power_decay,
    power_exponent,
)


def test_exponents_are_the_papers() -> None:
    """Catches: another root of the equation: 16.97 and 6.94 are the paper's for 5 and 10 %."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.005)
    with pytest.raises(ValueError, match="between"):
        power_exponent(0.5)


@pytest.mark.parametrize("std", [0.03, 0.05, 0.1, 0.2])
def test_the_decays_have_this_profile(std: float) -> None:
    """Catches: a step count that begins at the wrong end: the weights' std must be std * t."""
    steps, gamma = 4000, power_exponent(std)
    weights = torch.zeros(steps, dtype=torch.float64)
    for step in range(steps):
        decay = power_decay(step, gamma)
        weights *= decay
        weights[step] += 1 - decay
    tau = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    assert float(weights.sum()) == pytest.approx(1)
    mean = float((weights * tau).sum())
    spread = math.sqrt(float((weights * (tau - mean) ** 2).sum()))
    assert spread == pytest.approx(std, rel=5e-3)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


def test_overlaps_are_integrals() -> None:
    """Catches: powers of the wrong one of two times."""
    for a, b in (((300, 0.05), (700, 0.1)), ((700, 0.05), (300, 0.1)), ((500, 0.2), (500, 0.07))):
        a, b = Snapshot(*a), Snapshot(*b)
        tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * min(a.step, b.step)
        profiles = [
            (power_exponent(s.std) + 1)
            * tau ** power_exponent(s.std)
            / float(s.step) ** (power_exponent(s.std) + 1)
            for s in (a, b)
        ]
        numeric = float((profiles[0] * profiles[1]).mean() * min(a.step, b.step))
        assert overlap(a, b) == pytest.approx(numeric, rel=1e-6)


def test_a_snapshot_is_itself() -> None:
    """Catches: a solution that mixes others in where one is exact."""
    snapshots = [Snapshot(step, std) for step in (100, 200, 300, 400) for std in (0.05, 0.1)]
    for target in snapshots:
        found = posthoc_coefficients(snapshots, target)
        expected = [float(s == target) for s in snapshots]
        assert found == pytest.approx(expected, abs=1e-6)
        assert posthoc_error(snapshots, found, target) < 1e-5
    with pytest.raises(ValueError, match="no snapshot"):
        posthoc_coefficients(snapshots, Snapshot(50, 0.1))


@pytest.mark.parametrize(("std", "tolerance"), [(0.07, 0.01), (0.1, 1e-5), (0.15, 0.02)])
def test_an_average_nobody_tracked(std: float, tolerance: float) -> None:
    """Catches: factors that fit the formula and not the weights: a random walk's true average."""
    torch.manual_seed(0)
    network = nn.Linear(40, 30)
    tracks = {std: ShardedEma(network) for std in (0.05, 0.1)}
    truth = ShardedEma(network)
    snapshots = {}
    for step in range(1600):
        with torch.no_grad():
            network.weight += 0.1 * torch.randn_like(network.weight)
        for width, track in tracks.items():
            track.update(power_decay(step, power_exponent(width)))
        truth.update(power_decay(step, power_exponent(std)))
        if (step + 1) % 100 == 0:
            for width, track in tracks.items():
                snapshots[Snapshot(step + 1, width)] = track.gather()["weight"].double()
    target = Snapshot(1600, std)
    factors = posthoc_coefficients(list(snapshots), target)
    found = sum(c * w for c, w in zip(factors, snapshots.values(), strict=True))
    expected = truth.gather()["weight"].double()
    spread = float((network.weight.detach().double() - expected).norm())
    assert float((found - expected).norm()) < tolerance * spread
    assert sum(factors) == pytest.approx(1, abs=0.02)
    assert posthoc_error(list(snapshots), factors, target) < 0.05
