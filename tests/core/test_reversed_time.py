"""Networks whose time runs from the noise to the data."""

from __future__ import annotations

import pytest
import torch

from sitcli import names
from sitcli.core.reversed_time import ReversedTime


@pytest.mark.parametrize("prediction", names.PREDICTIONS)
def test_time_is_turned_and_the_sign_of_a_velocity_alone(prediction: str) -> None:
    """Catches: a sign for score, noise or data, none for velocity, or a time turned twice.

    The network is x exp(2 s) + y of its own time s = 1 - t; a velocity dx/dt is -dx/ds.
    """

    def network(x, s, y):
        return x * torch.exp(2 * s).view(-1, 1, 1, 1) + y.view(-1, 1, 1, 1)

    x, t, y = torch.ones(3, 1, 1, 1), torch.tensor([0.0, 0.25, 1.0]), torch.tensor([0, 1, 2])
    found = ReversedTime(network, prediction=prediction)(x, t, y).flatten()
    expected = torch.exp(2 * (1 - t)) + y
    torch.testing.assert_close(found, -expected if prediction == "velocity" else expected)
