"""The flow's samplers: steps and network evaluations."""

from __future__ import annotations

import pytest
import torch

from sitcli import names
from sitcli.core.flow import Flow, Ode, Sde
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.intervals import MARGIN, Interval
from sitcli.core.philox import Draws
from sitcli.core.wt import LossCurve, wt_of
from tests.core.gaussian import Gaussian

DATA = Gaussian(mean=0.7, std=0.6)
Y = torch.zeros(3, dtype=torch.long)


def states(number: int = 3) -> torch.Tensor:
    return torch.linspace(-1.5, 2.0, number, dtype=torch.float64).view(number, 1, 1, 1)


def test_steps_and_evaluations_are_exact() -> None:
    """Catches: `steps` meaning N-1 steps, or an SDE step that evaluates the network twice."""
    for solver, steps, spent in [
        ("euler", 7, 7),
        ("heun", 7, 14),
        ("rk4", 3, 12),
        ("ab2", 7, 7),
        ("dpm++2m", 7, 7),
    ]:
        network = GuidedNetwork(
            DATA.network("linear", "velocity"), Guidance(scale=1.0, channels=None, null_class=0)
        )
        taken = list(Flow().sample(network, states(), Y, Ode(solver=solver, steps=steps)))
        assert len(taken) == steps
        assert network.evaluations == 3 * spent
    for solver, last_step, spent in [
        ("euler-maruyama", "mean", 10),
        ("euler-maruyama", "none", 10),
        ("heun", "tweedie", 19),
    ]:
        network = GuidedNetwork(
            DATA.network("linear", "velocity"), Guidance(scale=1.0, channels=None, null_class=0)
        )
        sde = Sde(w=wt_of("sigma"), wt="sigma", solver=solver, steps=10, last_step=last_step)
        taken = list(Flow().sample(network, states(), Y, sde, randn=states))
        assert len(taken) == 10
        assert network.evaluations == 3 * spent


@pytest.mark.parametrize("loss_weight", names.LOSS_WEIGHTS)
@pytest.mark.parametrize("prediction", names.PREDICTIONS)
def test_losses_by_hand(prediction: str, loss_weight: str) -> None:
    """Catches: a factor of the velocity's error, a weight, or channels of the output mixed up.

    On linear alpha = 1 - t and sigma = t, so that an error e of the output is one of the velocity
    of e (velocity), e / (1 - t) (noise, and score times sigma), e / t (data), by v = eps - x_* and
    x_t = (1 - t) x_* + t eps. The likelihood's weight divides the latter's square by t / (1 - t).
    """
    t = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    x_star, eps = torch.randn(2, 3, 3, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    flow, e = Flow(prediction=prediction, loss_weight=loss_weight), 0.25
    sigma = t.view(-1, 1, 1, 1)
    exact = dict(velocity=eps - x_star, noise=eps, data=x_star, score=-eps / sigma)[prediction]
    error = e / sigma if prediction == "score" else torch.full_like(exact, e)
    # A head of learned variance has as many channels again, which the loss does not look at.
    output = torch.cat([exact + error, torch.full_like(exact, 9.0)], dim=1)
    found = flow.loss(lambda x, t, y: output, x_star, Y, t=t, eps=eps)
    scale = dict(velocity=1 + 0 * t, noise=1 / (1 - t), score=1 / (1 - t), data=1 / t)[prediction]
    velocity = (e * scale) ** 2
    weighted = dict(none=e**2 + 0 * t, velocity=velocity, likelihood=velocity * (1 - t) / t)
    torch.testing.assert_close(found.velocity.double(), velocity, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.loss.double(), weighted[loss_weight], rtol=1e-5, atol=0)


def test_training_times_fill_the_interval() -> None:
    """Catches: times that leave the interval, or never come near one of its ends."""
    draws = Draws(0, 1, torch.arange(4000))
    t = Flow(prediction="noise").draw_times(draws)
    assert MARGIN <= float(t.min()) < 2 * MARGIN
    assert 1 - 2 * MARGIN < float(t.max()) <= 1 - MARGIN
    # The mean of 4,000 uniform numbers has a standard error of 0.0046.
    assert abs(float(t.mean()) - 0.5) < 5 * 0.0046


@pytest.mark.parametrize("solver", names.ODE_SOLVERS)
def test_the_state_at_the_start_is_scaled_noise(solver: str) -> None:
    """Catches: an interval that is given and not taken, or noise that is not scaled to it."""
    flow, interval = Flow(), Interval(0.8, 0.2, scale=0.5)
    ode = Ode(solver=solver, steps=1, rtol=1e9, atol=1e9, interval=interval)
    still = lambda x, t, y: torch.zeros_like(x)  # noqa: E731
    *_, (t, x) = flow.sample(still, states(), Y, ode)
    assert t == pytest.approx(0.2, abs=1e-12)
    expected = 0.5 * states()
    if solver == "dpm++2m":  # from sigma, alpha = 0.8, 0.2 to 0.2, 0.8, the data are x_t
        expected = expected * (0.2 / 0.8 + 0.8 - 0.2 * 0.2 / 0.8)
    torch.testing.assert_close(x, expected)


def test_the_sde_begins_with_scaled_noise_too() -> None:
    """Catches: the interval of the SDE not taken, or its noise not scaled."""
    flow, interval = Flow(), Interval(0.8, 0.2, scale=0.5)
    sde = Sde(w=wt_of("sigma", scale=0.0), wt="sigma", steps=3, last_step="none", interval=interval)
    still = lambda x, t, y: torch.zeros_like(x)  # noqa: E731
    *_, (t, x) = flow.sample(still, states(), Y, sde, randn=states)
    assert t == pytest.approx(0.2)
    torch.testing.assert_close(x, 0.5 * states())


def test_only_what_divides_by_alpha_begins_later() -> None:
    """Catches: a loss curve that moves the start of a network that needs none, or moves none."""
    curve = LossCurve(values=(400.0,) * 20)
    # The velocity's error is 20, the noise's thus 20 (1 - 0.925) = 1.5, and the data's is 2 where
    # 1.5 sigma / alpha is.
    assert Flow(prediction="noise").ode_interval(curve).start == pytest.approx(4 / 7, abs=1e-4)
    assert Flow(prediction="data").ode_interval(curve).start == 1.0
    assert Flow(prediction="velocity").ode_interval(curve).start == 1.0
