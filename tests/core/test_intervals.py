"""The intervals of time on which a process trains and samples."""

from __future__ import annotations

import pytest
import torch

from sitcli import names
from sitcli.core.flow import Flow
from sitcli.core.intervals import sde_interval, train_interval


def test_train_intervals() -> None:
    """Catches: division by zero at an end of the training interval."""
    assert train_interval("linear", "velocity", "none") == (0.0, 1.0)
    assert train_interval("gvp", "score", "velocity") == (1e-3, 1 - 1e-3)
    assert train_interval("vp", "velocity", "none") == (1e-5, 1.0)


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
