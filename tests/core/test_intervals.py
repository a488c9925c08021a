"""The intervals of time on which a process trains and samples."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli import names
from sitcli.core.flow import Flow
from sitcli.core.intervals import (
    LAST_SIGMA,
    MARGIN,
    MOST_DATA_ERROR,
    reliable_start,
    sde_interval,
    train_interval,
)
from sitcli.core.wt import LossCurve


def test_train_intervals() -> None:
    """Catches: division by zero at an end of the training interval."""
    assert train_interval("linear", "velocity", "none") == (0.0, 1.0)
    assert train_interval("gvp", "score", "velocity") == (1e-3, 1 - 1e-3)
    assert train_interval("vp", "velocity", "none") == (1e-5, 1.0)


def test_the_default_ends() -> None:
    """Catches: an end of SiT's Table 10 that is another one, or noise that is not scaled to it."""
    assert Flow().ode_interval() == (1.0, 0.0, False, 1.0, 0.0)
    assert Flow(prediction="data").ode_interval() == (1.0, 0.0, True, 1.0, 0.04)
    assert Flow(interpolant="vp", prediction="score").ode_interval()[:2] == (1.0, 1e-5)
    # sigma is t on linear.
    assert Flow(prediction="noise").ode_interval()[:2] == (1 - MARGIN, 0.0)
    assert Flow(prediction="noise").ode_interval().scale == 1 - MARGIN
    assert sde_interval("linear", "velocity", "kl", 0.04)[:2] == (1 - 1e-3, 0.04)
    assert sde_interval("linear", "velocity", "sigma", 0.0)[:2] == (1.0, 1e-3)


@pytest.mark.parametrize("error", [0.001, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_the_estimate_of_the_data_is_of_use_at_the_start(interpolant: str, error: float) -> None:
    """Catches: a start that is not the latest one, or alpha and sigma the wrong way round."""
    flow = Flow(interpolant=interpolant, prediction="noise")
    start = reliable_start(error, 1 - MARGIN, flow.alpha_sigma)

    def data_error(t: float) -> float:
        alpha, sigma = flow.alpha_sigma(t)
        return error * sigma / alpha

    # The start is rounded to 1e-4, over which alpha changes by at most 0.5 a second of t.
    assert data_error(start - 1e-4) <= MOST_DATA_ERROR
    assert start == 1 - MARGIN or data_error(start + 1e-4) >= MOST_DATA_ERROR


def test_the_noise_error_is_read_off_the_loss_curve() -> None:
    """Catches: a velocity loss taken for the noise's, and a network that does not divide by alpha
    held back. On linear an error e of eps is one of e / (1 - t) of the velocity."""
    noise_error = 0.1
    bins = [(i + 0.5) / 20 for i in range(20)]
    curve = LossCurve(values=tuple((noise_error / (1 - t)) ** 2 for t in bins))
    alpha = noise_error / MOST_DATA_ERROR
    # sigma / alpha = MOST_DATA_ERROR / noise_error, and alpha + sigma = 1.
    expected = 1 - alpha / (1 + alpha)
    for prediction in ("noise", "score"):
        start = Flow(prediction=prediction).ode_interval(curve).start
        assert start == pytest.approx(expected, abs=1e-4)
        assert Flow(prediction=prediction).sde_interval("sigma", 0.04, curve).start == start
    for prediction in ("velocity", "data"):
        assert Flow(prediction=prediction).ode_interval(curve).start == 1.0
    exact = LossCurve(values=(0.0,) * 20)
    assert Flow(prediction="noise").ode_interval(exact).start == 1 - MARGIN


@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_the_last_step_begins_at_one_sigma(interpolant: str) -> None:
    """Catches: t = 0.04 on every path, where sigma is 0.063 on gvp and 0.14 on vp."""
    t = Flow(interpolant=interpolant).last_step_size
    closed = {
        "linear": LAST_SIGMA,
        "gvp": math.asin(LAST_SIGMA) * 2 / math.pi,
        # sigma^2 = 1 - exp(-(0.1 t + 9.95 t^2)).
        "vp": (-0.1 + math.sqrt(0.01 - 39.8 * math.log1p(-(LAST_SIGMA**2)))) / 19.9,
    }
    assert t == pytest.approx(closed[interpolant], abs=5e-5)  # rounded to four digits


@pytest.mark.parametrize("loss_weight", names.LOSS_WEIGHTS)
@pytest.mark.parametrize("prediction", names.PREDICTIONS)
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_training_keeps_off_what_the_loss_divides_by(
    interpolant: str, prediction: str, loss_weight: str
) -> None:
    """Catches: a velocity model under the likelihood weight that trains on all of [0, 1], where
    1 / (lambda_t sigma) is infinite at the data and 0/0 at the noise.

    The ends are create_transport's and check_interval's of the official SiT code (transport/): vp
    1e-5 at the data; linear and gvp 1e-3 at both ends, but the whole interval for a velocity model.
    Its likelihood weight knows no velocity models: ours, as their loss divides, take the same ends.
    """
    whole = prediction == "velocity" and loss_weight != "likelihood"
    expected = (0.0, 1.0) if whole else (1e-3, 1 - 1e-3)
    if interpolant == "vp":
        expected = (1e-5, 1.0)
    found = train_interval(interpolant, prediction, loss_weight)
    assert found == expected
    # And so every loss is finite at both ends, for a network that is wrong everywhere.
    flow = Flow(interpolant=interpolant, prediction=prediction, loss_weight=loss_weight)
    x, eps = torch.ones(2, 1, 1, 1), -torch.ones(2, 1, 1, 1)
    y, t = torch.zeros(2, dtype=torch.long), torch.tensor(found, dtype=torch.float64)
    assert torch.isfinite(flow.loss(lambda x, t, y: x + 3, x, y, t=t, eps=eps).loss).all()


def test_the_sde_of_kl_begins_where_the_official_code_lets_it() -> None:
    """Catches: a start at 1 - 1e-4 or at 1: w_KL = 2t / (1 - t) is infinite there on linear, and
    pi tan(pi t / 2) on gvp.

    check_interval of the official SiT code (transport/transport.py) begins the SBDM form, half of
    w_KL, at sample_eps. create_transport sets that to 1e-3 for score and noise models; for velocity
    models it is 0, and the first step infinite: ours begin where the others do. On vp w_KL is
    beta_t, which needs no margin.
    """
    for interpolant, start in (("linear", 1 - 1e-3), ("gvp", 1 - 1e-3), ("vp", 1.0)):
        assert sde_interval(interpolant, "velocity", "kl", 0.04).start == start
        assert sde_interval(interpolant, "velocity", "sigma", 0.04).start == 1.0
    assert sde_interval("linear", "score", "sigma", 0.04).start == 1 - 1e-3
