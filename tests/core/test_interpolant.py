"""Interpolants against their definitions and automatic derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli.core.interpolant import INTERPOLANTS, beta, path_at

T = torch.linspace(1e-3, 1 - 1e-3, 101, dtype=torch.float64)


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_derivatives(name: str) -> None:
    """Catches: a d_alpha or d_sigma that is not the derivative of alpha or sigma."""
    path, derivative = torch.func.jvp(INTERPOLANTS[name].path, (T,), (torch.ones_like(T),))
    torch.testing.assert_close(path.d_alpha, derivative.alpha)
    torch.testing.assert_close(path.d_sigma, derivative.sigma)


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_ends_and_determinant(name: str) -> None:
    """Catches: time running the wrong way, or W of the wrong sign."""
    ends = INTERPOLANTS[name].path(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.alpha[0] == 1
    assert ends.sigma[0] == 0
    assert ends.alpha[1] < 0.01
    assert abs(ends.sigma[1] - 1) < 1e-4
    assert (INTERPOLANTS[name].path(T).W > 0).all()


def test_determinants_in_closed_form() -> None:
    """Catches: a wrong constant in W; it is 1 for linear and pi/2 for gvp."""
    torch.testing.assert_close(INTERPOLANTS["linear"].path(T).W, torch.ones_like(T))
    torch.testing.assert_close(INTERPOLANTS["gvp"].path(T).W, torch.full_like(T, math.pi / 2))


def test_vp_preserves_variance_and_solves_its_sde() -> None:
    """Catches: an alpha that is not exp(-1/2 int beta); W sigma/alpha is then not beta/2."""
    path = INTERPOLANTS["vp"].path(T)
    torch.testing.assert_close(path.alpha**2 + path.sigma**2, torch.ones_like(T))
    torch.testing.assert_close(path.lambda_t * path.sigma, beta(T) / 2)
    # int_0^1 beta = 0.1 + 19.9/2
    assert math.isclose(
        float(INTERPOLANTS["vp"].path(torch.ones(1)).alpha), math.exp(-5.025), rel_tol=1e-5
    )


def test_vp_is_accurate_near_zero_in_single_precision() -> None:
    """Catches: sigma = sqrt(1 - alpha^2) cancelling to 0 at t = 1e-5, hence an infinite sigma'."""
    path = path_at("vp", torch.tensor([1e-5]), torch.zeros(1))
    assert math.isclose(float(path.sigma), math.sqrt(0.1e-5), rel_tol=1e-3)
    assert torch.isfinite(path.d_sigma).all()


def test_broadcast() -> None:
    """Catches: times broadcast along another axis than the batch."""
    path = path_at("linear", torch.tensor([0.25, 0.75]), torch.zeros(2, 3, 4, 4))
    assert path.sigma.shape == (2, 1, 1, 1)
    assert path.sigma.flatten().tolist() == [0.25, 0.75]


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_a_row_says_what_its_path_does_at_the_ends(name):
    """Catches: an interval that begins where alpha, or ends where a derivative, cannot be used."""
    path, first_time, ends_in_noise = INTERPOLANTS[name]
    first = path(torch.tensor(first_time, dtype=torch.float64))
    assert all(map(math.isfinite, map(float, first)))
    if first_time:
        assert not math.isfinite(path(torch.tensor(0.0, dtype=torch.float64)).d_sigma)
    last = path(torch.tensor(1.0, dtype=torch.float64))
    assert (float(last.alpha) == 0) == ends_in_noise


def test_a_state_and_its_velocity_by_hand() -> None:
    """Catches: data and noise exchanged, or derivatives in place of the coefficients.

    On gvp at t = 1/3: alpha = cos(pi/6), sigma = 1/2; for x_* = 2, eps = -4 the state is
    sqrt(3) - 2 and its derivative pi/2 (-1/2 2 + cos(pi/6) (-4)).
    """
    t = torch.tensor([1 / 3], dtype=torch.float64)
    path = path_at("gvp", t, t)
    x_star, eps = torch.tensor([2.0]).double(), torch.tensor([-4.0]).double()
    assert float(path.mix(x_star, eps)) == pytest.approx(math.sqrt(3) - 2)
    expected = math.pi / 2 * (-1 - 2 * math.sqrt(3))
    assert float(path.velocity(x_star, eps)) == pytest.approx(expected)
