"""The shift of times, grids of them, and the times of training."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli.core.flow import Flow
from sitcli.core.intervals import Interval
from sitcli.core.philox import Draws
from sitcli.core.times import Times, natural_shift, shifted, time_grid


def test_shift_is_sd3s() -> None:
    """Catches: the inverse shift, or ends that move (SD3 eq. 23)."""
    assert shifted(0.5, 3.0) == 0.75
    assert [shifted(t, 3.0) for t in (0.0, 1.0)] == [0.0, 1.0]
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shifted(shifted(t, 2.3), 1 / 2.3), t)
    assert natural_shift((4, 32, 32)) == 1.0
    assert natural_shift((4, 64, 64)) == 2.0


def test_shifted_grid() -> None:
    """Catches: ends that are not exact, a grid that goes up, or a default that changed its bits."""
    interval = Interval(1 - 1e-5, 1e-5)
    for shift in (0.4, 1.0, 3.0):
        grid = time_grid(interval, 7, shift)
        assert (grid[0], grid[-1], len(grid)) == (1 - 1e-5, 1e-5, 8)
        assert grid == sorted(grid, reverse=True)
    assert time_grid(Interval(1.0, 0.0), 4, 3.0)[2] == pytest.approx(0.75)
    assert time_grid(Interval(1.0, 0.0), 4, 1 / 3)[2] == pytest.approx(0.25)
    assert time_grid(interval, 7, 1.0) == time_grid(interval, 7)


def test_training_times() -> None:
    """Catches: a mean of the wrong sign, a shift the other way, times that are not the draws."""
    flow, images = Flow(), torch.arange(200_000)

    def draw(**options) -> torch.Tensor:
        return flow.draw_times(Draws(1, 0, images), Times(**options))

    torch.testing.assert_close(draw(), Draws(1, 0, images).uniform(), rtol=0, atol=0)
    tilted = draw(distribution="logit-normal", mean=0.5, std=0.8)
    # P(sigmoid(n) < 1/2) = Phi(-mean / std); the median is sigmoid(mean).
    below = 0.5 * (1 + math.erf(-0.5 / 0.8 / math.sqrt(2)))
    assert float((tilted < 0.5).float().mean()) == pytest.approx(below, abs=4e-3)
    assert float(tilted.median()) == pytest.approx(1 / (1 + math.exp(-0.5)), abs=4e-3)
    # Under uniform draws P(t' < a) is the inverse shift of a.
    moved = draw(shift=3.0)
    assert float((moved < 0.75).float().mean()) == pytest.approx(0.5, abs=4e-3)
    score = Flow(prediction="score").draw_times(
        Draws(1, 0, images), Times(distribution="logit-normal", std=5.0)
    )
    assert 1e-3 - 1e-6 <= float(score.min()) <= float(score.max()) <= 1 - 1e-3 + 1e-6


def test_the_plain_logit_normal_is_of_a_standard_normal() -> None:
    """Catches: another default width or mean than SD3's rf/lognorm(0.00, 1.00)."""
    draws = [Draws(3, 0, torch.arange(500)) for _ in range(2)]
    found = Times(distribution="logit-normal").draw(draws[0])
    torch.testing.assert_close(found, 1 / (1 + torch.exp(-draws[1].normal())))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_jump_begins_where_its_interval_says(shift: float) -> None:
    """Catches: a jump that begins later with more steps, or a step more or less for it."""
    interval = Interval(1.0, 0.0, jump=True, jump_from=0.04)
    for steps in (2, 5, 1000):
        times = time_grid(interval, steps, shift)
        assert times[-2:] == [0.04, 0.0]
        assert len(times) == steps + 1
        assert times[:-1] == time_grid(Interval(1.0, 0.04), steps - 1, shift)
    assert time_grid(interval, 1, shift) == [1.0, 0.0]
