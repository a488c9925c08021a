"""Losses, conversions, solvers and SDEs against closed forms for Gaussian data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sitcli import names
from sitcli.core.flow import Flow, Ode, Sde
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.interpolant import path_at
from sitcli.core.intervals import Interval, ode_interval, sde_interval
from sitcli.core.ode import ODE_STEPS, solve_dopri5, solve_ode
from sitcli.core.prediction import PREDICTIONS, to_data, to_score, to_velocity
from sitcli.core.sde import SDE_STEPS, Drift
from sitcli.core.times import time_grid
from sitcli.core.wt import WT, LossCurve, wt_of
from tests.core.gaussian import Gaussian

DATA = Gaussian(mean=0.7, std=0.6)
PAIRS = list(itertools.product(names.INTERPOLANTS, names.PREDICTIONS))
LOSS_CURVE = LossCurve(values=(0.5, 0.3, 0.2, 0.4))
Y = torch.zeros(3, dtype=torch.long)


def states(number: int = 3) -> torch.Tensor:
    return torch.linspace(-1.5, 2.0, number, dtype=torch.float64).view(number, 1, 1, 1)


@pytest.mark.parametrize(("interpolant", "prediction"), PAIRS)
@pytest.mark.parametrize("t", [0.04, 0.3, 0.9, 0.999])
def test_every_conversion(interpolant: str, prediction: str, t: float) -> None:
    """Fault: a conversion with a wrong sign or factor: each must equal the closed form."""
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
    """Fault: a training target that the sampler reads differently."""
    x_star, eps = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    path = path_at("gvp", torch.tensor([0.2, 0.8], dtype=torch.float64), x_star)
    target = PREDICTIONS[prediction].encode(x_star, eps, path)
    decoded = PREDICTIONS[prediction].decode(target, path.mix(x_star, eps), path)
    torch.testing.assert_close(decoded[0], x_star)
    torch.testing.assert_close(decoded[1], eps)


@pytest.mark.parametrize(("interpolant", "prediction"), PAIRS)
def test_weighted_losses_are_the_velocity_loss(interpolant: str, prediction: str) -> None:
    """Fault: lambda_t of SiT eq. 49 wrong; every weighted loss must equal L_v of its velocity."""
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
    """Fault: another weight than w_KL/2 times the squared score error."""
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
    """Fault: plain |s_theta - target|^2, which diverges at small t (SiT eq. 7)."""
    x_star, eps = torch.randn(2, 2, 1, 2, 2)
    t = torch.tensor([0.01, 0.5])
    loss = Flow(prediction="score").loss(lambda x, t, y: x, x_star, Y, t=t, eps=eps).loss
    path = path_at("linear", t, x_star)
    expected = (path.sigma * path.mix(x_star, eps) + eps).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected)


def exact_ode(interpolant: str, x: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """The probability flow of a Gaussian keeps the standardised coordinate."""
    (m, d), (n, e) = DATA.marginal(interpolant, t), DATA.marginal(interpolant, s)
    return n + e * (x - m) / d


@pytest.mark.parametrize("solver", ODE_STEPS)
def test_measured_order(solver: str) -> None:
    """Fault: a solver that takes N-1 steps, or a wrong stage, converges at another order."""
    interval, x = Interval(0.95, 0.05), states()

    def velocity(x, t):
        return Flow(interpolant="gvp").velocity(
            DATA.network("gvp", "velocity"), x, Y, x.new_full((3,), t)
        )

    def error(steps: int) -> float:
        *_, (_, end) = solve_ode(velocity, None, x, interval, solver=solver, steps=steps)
        return float((end - exact_ode("gvp", x, *interval[:2])).abs().max())

    order = math.log2(error(40) / error(80))
    assert abs(order - ODE_STEPS[solver].order) < 0.1


@pytest.mark.parametrize(("interpolant", "prediction"), PAIRS)
@pytest.mark.parametrize("solver", names.ODE_SOLVERS)
def test_ode_reaches_the_data(interpolant: str, prediction: str, solver: str) -> None:
    """Fault: a NaN or a wrong end of the interval for some interpolant, prediction, solver."""
    flow = Flow(interpolant=interpolant, prediction=prediction)
    steps = {"euler": 800, "heun": 100, "rk4": 50, "ab2": 200, "dpm++2m": 200}.get(solver, 1)
    ode = Ode(solver=solver, steps=steps, rtol=1e-6, atol=1e-6)
    noise = states()
    *_, (t, x) = flow.sample(DATA.network(interpolant, prediction), noise, Y, ode)
    start, end, _ = ode_interval(interpolant, prediction)
    assert t == pytest.approx(end, abs=1e-12)
    expected = exact_ode(interpolant, noise, start, 0.0)
    torch.testing.assert_close(x, expected, atol=0.01, rtol=0)


def test_steps_and_evaluations_are_exact() -> None:
    """Fault: `steps` meaning N-1 steps, or an SDE step that evaluates the network twice."""
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


def test_dopri5_equals_torchdiffeq_sample_by_sample() -> None:
    """Fault: a wrong tableau entry, or a step size shared by the batch."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    flow, network, noise = Flow(interpolant="gvp"), DATA.network("gvp", "velocity"), states()
    interval = ode_interval("gvp", "velocity")
    *_, (_, x) = flow.sample(network, noise, Y, Ode(solver="dopri5", rtol=1e-8, atol=1e-8))
    theirs = torchdiffeq.odeint(
        lambda t, x: flow.velocity(network, x, Y, t.expand(len(x)).to(x.dtype)),
        noise,
        torch.tensor(interval[:2], dtype=torch.float64),
        rtol=1e-10,
        atol=1e-10,
        method="dopri5",
    )[-1]
    torch.testing.assert_close(x, theirs, atol=2e-6, rtol=0)


def test_dopri5_samples_are_independent() -> None:
    """Fault: an error norm over the whole batch, which couples every sample to its mates."""

    def velocity(x, t, rows):
        return torch.sin((5 + 20 * rows.view(-1, 1)) * t.view(-1, 1)) * x

    start = torch.ones(3, 1, dtype=torch.float64)
    options = dict(rtol=1e-4, atol=1e-4)
    *_, (_, together) = solve_dopri5(velocity, None, start, Interval(1.0, 0.0), **options)
    for i in range(3):
        only = lambda x, t, rows, i=i: velocity(x, t, rows + i)  # noqa: E731
        *_, (_, alone) = solve_dopri5(only, None, start[:1], Interval(1.0, 0.0), **options)
        assert torch.equal(alone[0], together[i])


def propagate(
    flow: Flow, sde: Sde, network, visited: list[float] | None = None
) -> tuple[float, float]:
    """Mean and variance after the whole solve, exactly: each step is affine in (x, z).

    visited receives the standard deviation after each noisy step, over the marginal's.
    """
    # Three probes share every step: (x, z) = (0, 0), (1, 0), (0, 1).
    interval = sde_interval(
        flow.interpolant,
        flow.prediction,
        sde.wt,
        0.0 if sde.last_step == "none" else sde.last_step_size,
    )
    noisy = sde.steps if sde.last_step == "none" else sde.steps - 1

    def drift(x, t):
        return flow.drift(network, x, Y, x.new_full((len(x),), t), sde)

    x = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    mean, variance = 0.0, 1.0
    for t, s in itertools.pairwise(time_grid(interval, noisy)):
        c, a, b = SDE_STEPS[sde.solver].step(drift, x, t, s, z).flatten().tolist()
        mean, variance = (a - c) * mean + c, (a - c) ** 2 * variance + (b - c) ** 2
        if visited is not None:
            visited.append(variance**0.5 / DATA.marginal(flow.interpolant, s)[1])
    if sde.last_step != "none":
        from sitcli.core.sde import LAST_STEPS

        c, a, _ = LAST_STEPS[sde.last_step](drift, x, interval.end).flatten().tolist()
        mean, variance = (a - c) * mean + c, (a - c) ** 2 * variance
    return mean, variance


@pytest.mark.parametrize(("interpolant", "prediction"), PAIRS)
@pytest.mark.parametrize("wt", names.WTS)
def test_marginal_does_not_depend_on_w(interpolant: str, prediction: str, wt: str) -> None:
    """Fault: a score or w_t off by a factor: the SDE would then have other marginals."""
    flow = Flow(interpolant=interpolant, prediction=prediction)
    w = wt_of(wt, eta=0.1, loss_curve=LOSS_CURVE)
    network = DATA.network(interpolant, prediction)
    sde = Sde(w=w, wt=wt, solver="euler-maruyama", steps=1200, last_step="none")
    mean, variance = propagate(flow, sde, network)
    end = sde_interval(interpolant, prediction, wt, 0.0).end
    expected = DATA.marginal(interpolant, end)
    assert mean == pytest.approx(expected[0], abs=0.02)
    assert variance**0.5 == pytest.approx(expected[1], abs=0.02)


@pytest.mark.parametrize("steps", [20, 250])
@pytest.mark.parametrize("solver", names.SDE_SOLVERS)
@pytest.mark.parametrize("wt", names.WTS)
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_the_state_never_overshoots(interpolant: str, wt: str, solver: str, steps: int) -> None:
    """Fault: an unstable first step: w_KL h > 2 near t = 1 widens the state up to 50 times."""
    w = wt_of(wt, eta=0.1, loss_curve=LOSS_CURVE)
    sde = Sde(w=w, wt=wt, solver=solver, steps=steps)
    visited: list[float] = []
    propagate(Flow(interpolant=interpolant), sde, DATA.network(interpolant, "velocity"), visited)
    assert max(visited) < 1.25  # w h = 1 leaves explicit steps 1.15 times too wide


@pytest.mark.parametrize("solver", names.SDE_SOLVERS)
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler"])
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_last_step_lands_near_the_data(interpolant: str, last_step: str, solver: str) -> None:
    """Fault: a last step of the wrong length or sign leaves the residual noise or adds to it."""
    sde = Sde(
        w=wt_of("sigma"),
        wt="sigma",
        solver=solver,
        steps=1000,
        last_step=last_step,
        last_step_size=0.02,
    )
    flow = Flow(interpolant=interpolant)
    mean, variance = propagate(flow, sde, DATA.network(interpolant, "velocity"))
    assert mean == pytest.approx(DATA.mean, abs=0.02)
    assert variance**0.5 == pytest.approx(DATA.std, abs=0.02)


@pytest.mark.parametrize(
    ("sde_solver", "ode_solver"), [("euler-maruyama", "euler"), ("heun", "heun")]
)
def test_without_noise_the_sde_is_the_ode(sde_solver: str, ode_solver: str) -> None:
    """Fault: any term that does not vanish with w: the two must agree bit for bit."""
    flow, network, x = Flow(interpolant="gvp"), DATA.network("gvp", "velocity"), states().float()
    sde = Sde(w=wt_of("sigma", scale=0.0), wt="sigma", solver=sde_solver)

    def drift(x, t):
        return flow.drift(network, x, Y, x.new_full((3,), t), sde)

    stochastic = SDE_STEPS[sde_solver].step(drift, x, 0.6, 0.5, torch.randn_like(x))
    ode = ODE_STEPS[ode_solver].step(
        lambda x, t: flow.velocity(network, x, Y, x.new_full((3,), t)), x, 0.6, 0.5
    )
    assert torch.equal(stochastic, ode)


def test_stochastic_heun_is_weakly_second_order() -> None:
    """Fault: noise added after the corrector, which leaves the variance first order."""
    flow, network = Flow(interpolant="linear"), DATA.network("linear", "velocity")
    exact = DATA.marginal("linear", 0.3)

    def error(steps: int) -> float:
        sde = Sde(w=wt_of("sigma"), wt="sigma", solver="heun", steps=steps)
        drift = lambda x, t: flow.drift(network, x, Y, x.new_full((3,), t), sde)  # noqa: E731
        x = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
        z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
        mean, variance = DATA.marginal("linear", 0.9)
        variance **= 2
        for t, s in itertools.pairwise(time_grid(Interval(0.9, 0.3), steps)):
            c, a, b = SDE_STEPS["heun"].step(drift, x, t, s, z).flatten().tolist()
            mean, variance = (a - c) * mean + c, (a - c) ** 2 * variance + (b - c) ** 2
        return abs(variance - exact[1] ** 2)

    assert abs(math.log2(error(40) / error(80)) - 2) < 0.2


@pytest.mark.parametrize("wt", names.WTS)
def test_w_values(wt: str) -> None:
    """Fault: a factor of two between w_t and the official D = w/2; values by hand at t = 0.25."""
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


@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_kl_closed_forms_and_limits(interpolant: str) -> None:
    """Fault: w_KL other than 2t/(1-t), pi tan(pi t/2), beta_t; kl-eta infinite or NaN at t = 1."""
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
    """Fault: empty bins read as zero loss, which would switch the noise off."""
    curve = LossCurve.from_bins([0.0, 6.0, 0.0, 2.0], [0, 3, 0, 4])
    assert curve.values == (2.0, 2.0, 2.0, 0.5)
    assert LossCurve(values=(0.5,))(torch.tensor([0.0, 1.0])).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="no loss"):
        LossCurve.from_bins([0.0], [0])
    with pytest.raises(ValueError, match="kl-eta"):
        wt_of("kl-eta")


def test_guidance_channels_and_null_class() -> None:
    """Fault: the null class hard-coded to 1000, or the wrong channels guided."""

    def network(x, t, y):
        return y.view(-1, 1, 1, 1).expand(len(y), 8, 2, 2).to(x.dtype)

    x, t, y = torch.zeros(2, 4, 2, 2), torch.zeros(2), torch.tensor([1, 2])
    guided = GuidedNetwork(network, Guidance(scale=3.0, channels=None, null_class=10))
    assert guided(x, t, y)[:, 0, 0, 0].tolist() == [10 + 3 * (1 - 10), 10 + 3 * (2 - 10)]
    assert guided.evaluations == 4
    three = GuidedNetwork(network, Guidance(scale=3.0, channels=3, null_class=10))(x, t, y)
    # The fourth channel and the four of a learned variance are the conditional ones.
    assert three[0, :, 0, 0].tolist() == [-17, -17, -17, 1, 1, 1, 1, 1]
    assert guided(x, t, y)[0, :, 0, 0].tolist() == [-17] * 4 + [1] * 4
    plain = GuidedNetwork(network, Guidance(scale=1.0, channels=None, null_class=10))
    assert plain(x, t, y)[:, 0, 0, 0].tolist() == [1, 2]
    assert plain.evaluations == 2


def test_guidance_of_bf16_outputs_is_computed_in_fp32() -> None:
    """Fault: the difference of two bf16 outputs taken in bf16, which keeps two digits of it."""

    def network(x, t, y):
        return torch.where(y.view(-1, 1, 1, 1) == 9, 1.0, 1.0078125).bfloat16().expand_as(x)

    guided = GuidedNetwork(network, Guidance(scale=1.3, channels=None, null_class=9))
    found = guided(torch.zeros(1, 1, 1, 1), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert found.item() == pytest.approx(1 + 1.3 * 0.0078125, abs=1e-6)


def test_one_step_of_kl_is_finite() -> None:
    """Fault: a last step with w_KL at its beginning, infinite on linear and gvp."""
    for interpolant in names.INTERPOLANTS:
        sde = Sde(w=wt_of("kl"), wt="kl", steps=1)
        flow, network = Flow(interpolant=interpolant), DATA.network(interpolant, "velocity")
        *_, (_, x) = flow.sample(network, states(), Y, sde)
        assert float(x.abs().max()) < 5


def test_drift_is_the_reverse_sde() -> None:
    """Fault: the sign of the score term (SiT eq. 10: v - w score / 2 in forward time)."""
    one = torch.ones(1)
    drift = Drift(velocity=3 * one, score=2 * one, data=one, w=4 * one)
    assert drift.sde.item() == -1.0
