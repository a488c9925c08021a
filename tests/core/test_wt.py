"""The diffusion coefficients w_t by hand, and their limits."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli import names
from sitcli.core.interpolant import path_at
from sitcli.core.wt import WT, LossCurve, wt_of

LOSS_CURVE = LossCurve(values=(0.5, 0.3, 0.2, 0.4))


@pytest.mark.parametrize("wt", names.WTS)
def test_w_values(wt: str) -> None:
    """Catches: a factor of two between w_t and the official D = w/2; values by hand at t = 0.25."""
    t = torch.tensor([0.25], dtype=torch.float64)
    path = path_at("linear", t, t)
    kl = 2 * 0.25 / 0.75
    expected = {
        "kl": kl,
        "kl-eta": kl * math.sqrt(0.25 / (0.25 + 2 * 0.1 * kl**2)),
        "sigma": 0.25,
        "sin2": 0.5,
        "linear": 0.25,
        "constant": 1.0,
        "decreasing": 0.5 * (1 - math.sqrt(0.5)) ** 2,
    }
    # Bin centres are 1/8, 3/8, ...: at t = 1/4 the curve is half way between its first values.
    curve = LossCurve(values=(0.3, 0.2, 0.9, 0.9))
    assert float(wt_of(wt, eta=0.1, loss_curve=curve)(t, path)) == pytest.approx(expected[wt])
    assert float(wt_of(wt, eta=0.1, loss_curve=curve, scale=2.0)(t, path)) == pytest.approx(
        2 * expected[wt]
    )


def test_the_forms_of_time_alone_beyond_the_middle() -> None:
    """Catches: a cosine without its sign, which is positive before t = 1/2."""
    t = torch.tensor([0.75], dtype=torch.float64)
    path = path_at("linear", t, t)
    assert float(wt_of("decreasing")(t, path)) == pytest.approx(0.5 * (1 + math.sqrt(0.5)) ** 2)
    assert float(wt_of("sin2")(t, path)) == pytest.approx(0.5)


@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_kl_closed_forms_and_limits(interpolant: str) -> None:
    """Catches: w_KL other than 2t/(1-t), pi tan(pi t/2), beta_t; kl-eta infinite or NaN at t =
    1."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    path = path_at(interpolant, t, t)
    expected = {
        "linear": 2 * t / (1 - t),
        "gvp": math.pi * torch.tan(math.pi * t / 2),
        "vp": 0.1 + 19.9 * t,
    }[interpolant]
    torch.testing.assert_close(WT["kl"].w(t, path), expected)
    one = torch.ones(1, dtype=torch.float64)
    limit = wt_of("kl-eta", eta=0.1, loss_curve=LOSS_CURVE)(one, path_at(interpolant, one, one))
    if interpolant != "vp":
        assert float(limit) == pytest.approx(math.sqrt(0.4 / 0.2))


def test_loss_curve() -> None:
    """Catches: empty bins read as zero loss, which would switch the noise off."""
    curve = LossCurve.from_bins([0.0, 6.0, 0.0, 2.0], [0, 3, 0, 4])
    assert curve.values == (2.0, 2.0, 2.0, 0.5)
    assert LossCurve(values=(0.5,))(torch.tensor([0.0, 1.0])).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="shorter"):
        LossCurve.from_bins([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="no loss"):
        LossCurve.from_bins([0.0], [0])
    with pytest.raises(ValueError, match="kl-eta"):
        wt_of("kl-eta")


@pytest.mark.parametrize("wt", names.WTS)
def test_a_row_says_whether_it_is_infinite_at_the_noise(wt: str) -> None:
    """Catches: an SDE that begins at t = 1 with an infinite w_t."""
    one = torch.ones(1, dtype=torch.float64)
    w = wt_of(wt, loss_curve=LOSS_CURVE)(one, path_at("linear", one, one))
    assert bool(torch.isinf(w)) == WT[wt].infinite_at_noise
