"""What a network may predict, and the losses on it, against closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch

from sitcli import names
from sitcli.core.flow import Flow
from sitcli.core.interpolant import path_at
from sitcli.core.prediction import LOSS_WEIGHTS, PREDICTIONS, to_data, to_score, to_velocity
from sitcli.core.wt import WT
from tests.core.gaussian import Gaussian

DATA = Gaussian(mean=0.7, std=0.6)
PAIRS = list(itertools.product(names.INTERPOLANTS, names.PREDICTIONS))
Y = torch.zeros(3, dtype=torch.long)


def states(number: int = 3) -> torch.Tensor:
    return torch.linspace(-1.5, 2.0, number, dtype=torch.float64).view(number, 1, 1, 1)


@pytest.mark.parametrize(("interpolant", "prediction"), PAIRS)
@pytest.mark.parametrize("t", [0.04, 0.3, 0.9, 0.999])
def test_every_conversion(interpolant: str, prediction: str, t: float) -> None:
    """Catches: a conversion with a wrong sign or factor: each must equal the closed form."""
    x, times = states(), torch.full((3,), t, dtype=torch.float64)
    path = path_at(interpolant, times, x)
    output = DATA.network(interpolant, prediction)(x, times, Y)
    data, eps = DATA.posterior(x, path)
    torch.testing.assert_close(to_data(prediction, output, x, path), data)
    torch.testing.assert_close(to_score(prediction, output, x, path), DATA.score(x, path))
    velocity = to_velocity(prediction, output, x, path)
    torch.testing.assert_close(velocity, path.velocity(data, eps))


@pytest.mark.parametrize("prediction", names.PREDICTIONS)
def test_encode_undoes_decode(prediction: str) -> None:
    """Catches: a training target that the sampler reads differently."""
    x_star, eps = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    path = path_at("gvp", torch.tensor([0.2, 0.8], dtype=torch.float64), x_star)
    target = PREDICTIONS[prediction].encode(x_star, eps, path)
    decoded = PREDICTIONS[prediction].decode(target, path.mix(x_star, eps), path)
    torch.testing.assert_close(decoded[0], x_star)
    torch.testing.assert_close(decoded[1], eps)


@pytest.mark.parametrize(("interpolant", "prediction"), PAIRS)
def test_weighted_losses_are_the_velocity_loss(interpolant: str, prediction: str) -> None:
    """Catches: lambda_t of SiT eq. 49 wrong; every weighted loss must equal L_v of its velocity."""
    torch.manual_seed(0)
    x_star, eps = torch.randn(2, 5, 2, 3, 3, dtype=torch.float64)
    t = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    bias = torch.randn_like(x_star)

    def network(x, times, y):
        return DATA.network(interpolant, prediction)(x, times, y) + 0.1 * bias

    flow = Flow(interpolant=interpolant, prediction=prediction, loss_weight="velocity")
    loss = flow.loss(lambda x, t, y: network(x, t, y), x_star, Y, t=t, eps=eps)
    path = path_at(interpolant, t, x_star)
    x_t = path.mix(x_star, eps)
    velocity = to_velocity(prediction, network(x_t, t, Y), x_t, path)
    expected = (velocity - path.velocity(x_star, eps)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.loss.double(), expected, rtol=1e-4, atol=1e-6)
    plain = Flow(interpolant=interpolant, prediction=prediction)
    measured = plain.loss(network, x_star, Y, t=t, eps=eps).velocity
    torch.testing.assert_close(measured.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("interpolant", "prediction"), PAIRS)
def test_likelihood_weight(interpolant: str, prediction: str) -> None:
    """Catches: another weight than w_KL/2 times the squared score error."""
    torch.manual_seed(0)
    x_star, eps = torch.randn(2, 2, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    network = Gaussian(mean=0.0, std=2.0).network(interpolant, prediction)
    flow = Flow(interpolant=interpolant, prediction=prediction, loss_weight="likelihood")
    path = path_at(interpolant, t, x_star)
    x_t = path.mix(x_star, eps)
    score = to_score(prediction, network(x_t, t, Y), x_t, path)
    w_kl = WT["kl"].w(t.view(-1, 1, 1, 1), path)
    expected = (w_kl / 2 * (score + eps / path.sigma) ** 2).flatten(1).mean(1)
    loss = flow.loss(network, x_star, Y, t=t, eps=eps).loss.double()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


def test_score_loss_is_the_papers() -> None:
    """Catches: plain |s_theta - target|^2, which diverges at small t (SiT eq. 7)."""
    x_star, eps = torch.randn(2, 2, 1, 2, 2)
    t = torch.tensor([0.01, 0.5])
    loss = Flow(prediction="score").loss(lambda x, t, y: x, x_star, Y, t=t, eps=eps).loss
    path = path_at("linear", t, x_star)
    expected = (path.sigma * path.mix(x_star, eps) + eps).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("prediction", names.PREDICTIONS)
def test_what_turns_with_time_is_the_velocity(prediction: str) -> None:
    """Catches: weights of reversed time whose output keeps the sign it should change.

    The path in reversed time s = 1 - t has the same alpha and sigma and the opposite derivatives;
    noise, score and data do not know of the direction.
    """
    x, times = states(), torch.full((3,), 0.3, dtype=torch.float64)
    path = path_at("gvp", times, x)
    turned = path._replace(d_alpha=-path.d_alpha, d_sigma=-path.d_sigma)
    encode, pair = PREDICTIONS[prediction].encode, DATA.posterior(x, path)
    sign = -1 if PREDICTIONS[prediction].turns_with_time else 1
    torch.testing.assert_close(encode(*pair, turned), sign * encode(*pair, path))


def test_which_weight_divides() -> None:
    """Catches: a training interval shortened for a weight that is finite at both ends."""
    assert {name for name, row in LOSS_WEIGHTS.items() if row.divides} == {"likelihood"}
