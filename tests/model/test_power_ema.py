"""Averages of power-function profile: their weights in closed form, and one made of others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sitcli.model.ema import ShardedEma
from sitcli.model.power_ema import (
    TRACKED_STDS,
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


@pytest.mark.parametrize("gamma", [0.0, 6.94, 16.97])
def test_the_decays_telescope(gamma: float) -> None:
    """Catches: a decay that is off by one step, which moves the weights of a short run.

    After n updates the first k together weigh (k/n)^(gamma+1), the integral of the profile
    (gamma+1) tau^gamma / n^(gamma+1) up to k (Karras et al. 2023, eqs. 1 and 2; EDM2's
    training/phema.py, power_function_beta: (1 - t_delta / t_next)^(gamma+1), t_next counted after
    the step). With gamma = 0 it is the plain mean.
    """
    n = 12
    weights = torch.zeros(n, dtype=torch.float64)
    for step in range(n):
        decay = power_decay(step, gamma)
        weights *= decay
        weights[step] += 1 - decay
    expected = [(k / n) ** (gamma + 1) for k in range(1, n + 1)]
    # A dozen products in float64 of factors that are exact to rounding.
    assert weights.cumsum(0).tolist() == pytest.approx(expected, rel=1e-12)
    assert power_decay(0, gamma) == 0
    assert power_decay(3, 1.0) == pytest.approx((3 / 4) ** 2)


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
    with pytest.raises(ValueError, match="longer"):
        posthoc_error(snapshots, [1.0], snapshots[0])
    with pytest.raises(ValueError, match="no snapshot"):
        posthoc_coefficients(snapshots, Snapshot(50, 0.1))


def of_exponent(step: int, gamma: float) -> Snapshot:
    """The average whose weights over time go as tau^gamma."""
    return Snapshot(step, math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3)))


def test_two_averages_by_hand() -> None:
    """Catches: another sum than 1, and a sum of 1 that is not the nearest average.

    On (0, 1) the profiles are a = 3 tau^2, b = 4 tau^3 and the target f = 2 tau. Of all
    c a + (1 - c) b the nearest to f has c = <f - b, a - b> / |a - b|^2 = (13/70) / (3/35) = 13/6
    and is at 1/60 = (1/80) |f|^2 from it, squared. Least squares without the constraint gives 2 and
    -21/20, of sum 0.95; EDM2's training/phema.py, solve_posthoc_coefficients, divides by that.
    """
    a, b, f = (of_exponent(900, gamma) for gamma in (2, 3, 1))
    found = posthoc_coefficients([a, b], f)
    # The exponents are found from the widths to about 1e-14, the matrix's condition is about 70.
    assert found == pytest.approx([13 / 6, -7 / 6], rel=1e-10)
    assert posthoc_error([a, b], found, f) == pytest.approx(math.sqrt(1 / 80), rel=1e-9)
    divided = [2 / 0.95, -1.05 / 0.95]
    expected = math.sqrt((4 / 3 - 2 * 1.32 / 0.95 + 1.32 / 0.95**2) / (4 / 3))
    assert posthoc_error([a, b], divided, f) == pytest.approx(expected, rel=1e-9)
    assert expected > math.sqrt(1 / 80)


def test_one_snapshot_is_taken_whole() -> None:
    """Catches: 5/6 of the weights, the factor of least squares. The error is then |f - a| / |f|,
    squared (9/5 - 3 + 4/3) / (4/3) = 1/10."""
    a, f = of_exponent(900, 2), of_exponent(900, 1)
    assert posthoc_coefficients([a], f) == [pytest.approx(1, rel=1e-15)]
    assert posthoc_error([a], [1.0], f) == pytest.approx(math.sqrt(1 / 10), rel=1e-9)


KEPT = {
    "one width": [Snapshot(1000, 0.1)],
    "one step": [Snapshot(1000, width) for width in (0.05, 0.1)],
    "3 steps": [Snapshot(1000 * n, width) for n in (1, 2, 3) for width in (0.05, 0.1)],
    "8 steps": [Snapshot(1000 * n, width) for n in range(1, 9) for width in (0.05, 0.1)],
    "60 steps": [Snapshot(1000 * n, width) for n in range(1, 61) for width in (0.05, 0.1)],
    # Nearly equal profiles: the matrix is singular to rounding.
    "neighbours": [Snapshot(10**6 + n, width) for n in range(20) for width in (0.05, 0.1)],
    "from the first": [Snapshot(2**n, width) for n in range(18) for width in (0.05, 0.1)],
}


@pytest.mark.parametrize("std", [0.005, 0.05, 0.07, 0.15, 0.2, 0.25, 0.28])
@pytest.mark.parametrize("kept", KEPT)
def test_every_combination_is_an_average(kept: str, std: float) -> None:
    """Catches: weights that shrink or grow: least squares alone sums to 0.48 for one step and a
    width of 0.25, 0.67 for 0.20, 1.036 for 0.07, and 0.98 for 8 steps and 0.20.

    And a combination that is not the nearest: EDM2's, divided by its sum, is an average too.
    """
    snapshots = KEPT[kept]
    target = Snapshot(snapshots[-1].step, std)
    found = posthoc_coefficients(snapshots, target)
    # Rounding of a sum of at most 120 terms.
    size = sum(map(abs, found))
    assert abs(math.fsum(found) - 1) < 120 * 2.3e-16 * size < 1e-6
    if kept == "neighbours":
        return  # divided as it is, least squares has no digits there
    A = torch.tensor([[overlap(a, b) for b in snapshots] for a in snapshots], dtype=torch.float64)
    b = torch.tensor([overlap(a, target) for a in snapshots], dtype=torch.float64)
    scale = A.diagonal().rsqrt()
    plain = scale * torch.linalg.solve(scale[:, None] * A * scale, scale * b)
    divided = (plain / plain.sum()).tolist()
    error = posthoc_error(snapshots, found, target)
    # The squared error is a difference of numbers near 1: below 1e-6 its root is rounding.
    assert error < posthoc_error(snapshots, divided, target) + 1e-6


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
    assert sum(factors) == pytest.approx(1, abs=1e-12)
    assert posthoc_error(list(snapshots), factors, target) < 0.05


def test_the_tracked_widths_are_edm2s() -> None:
    """Catches: another pair than 0.05 and 0.10 (Karras et al. 2023, section 3.2)."""
    assert TRACKED_STDS == (0.05, 0.10)
