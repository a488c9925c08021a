"""The discrete process: losses by hand, and samplers on exact Gaussians."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli import names
from sitcli.core.chain import Moments, gaussian_kl
from sitcli.core.diffusion import Ddim, Ddpm, Diffusion
from sitcli.core.flow import Flow, Ode, Sde
from sitcli.core.philox import Draws
from sitcli.core.wt import wt_of
from tests.core.cases import pairs_first
from tests.core.exact import exact_network, propagated
from tests.core.gaussian import Gaussian

BETAS = (0.1, 0.2, 0.3, 0.4)
ABAR = (0.9, 0.72, 0.504, 0.3024)
DATA = Gaussian(mean=0.7, std=0.6)
Y = torch.zeros(3, dtype=torch.long)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def test_loss_of_four_steps_by_hand() -> None:
    """Catches: mse and bound mixed up, natural units, a 1/T, or the mean not detached.

    Step 2, x_* = 0.5, eps = 1, a network that answers eps = 0.25 and v = 0.5.
    """
    process = Diffusion(betas=BETAS)
    x_star, eps = column(0.5), column(1.0)
    answer = torch.tensor([0.25, 0.5], dtype=torch.float64, requires_grad=True)
    seen = []

    def network(x, t, y):
        seen.append((float(x), float(t)))
        return answer.view(1, 2, 1, 1)

    t = torch.tensor([3 / 4])
    loss = process.loss(network, x_star, Y[:1], t=t, eps=eps).loss
    x = 0.504**0.5 * 0.5 + 0.496**0.5
    assert seen == [(pytest.approx(x), 2.0)]
    # The reverse mean from the predicted x_*, the true one from 0.5; variances by frac = 0.75.
    predicted = (x - 0.496**0.5 * 0.25) / 0.504**0.5
    weight = 0.3 * 0.72**0.5 / 0.496
    posterior = 0.3 * 0.28 / 0.496
    log_variance = 0.75 * math.log(0.3) + 0.25 * math.log(posterior)
    ratio = posterior / math.exp(log_variance)
    shift = (weight * (predicted - 0.5)) ** 2 / math.exp(log_variance)
    kl = 0.5 * (ratio - 1 - math.log(ratio) + shift)
    assert loss.item() == pytest.approx(0.75**2 + kl / math.log(2), rel=1e-5)
    loss.sum().backward()
    assert float(answer.grad[0]) == pytest.approx(2 * (0.25 - 1))  # of the mse alone
    assert float(answer.grad[1]) != 0


def test_first_step_is_a_likelihood() -> None:
    """Catches: the KL used at k = 0, where the data's bin counts (DDPM eq. 13)."""
    process = Diffusion(betas=BETAS, variance="fixed-small")
    x_star, k = column(0.5), torch.tensor([0])
    path = process.path(torch.tensor([0.25]).double(), x_star)
    x = path.mix(x_star, column(0.3))
    term = process.bound_term(process.chain, column(0.1), x_star, x, k, path)
    mean = (float(x) - 0.1**0.5 * 0.1) / 0.9**0.5
    std = (0.2 * 0.1 / 0.28) ** 0.5

    def cdf(value: float) -> float:
        return 0.5 * (1 + math.erf((value - mean) / std / 2**0.5))

    mass = cdf(0.5 + 1 / 255) - cdf(0.5 - 1 / 255)
    assert float(term) == pytest.approx(-math.log2(mass), rel=1e-6)


def test_ddim_trajectory_of_four_steps_by_hand() -> None:
    """Catches: a DDIM step from the wrong abar, or a step skipped; every state by hand.

    The network answers eps = x / 2.
    """
    process = Diffusion(betas=BETAS, variance="fixed-small")
    x = 1.5
    expected = []
    for now, before in zip(ABAR[::-1], (*ABAR[-2::-1], 1.0), strict=True):
        eps = x / 2
        x = before**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - before) ** 0.5 * eps
        expected.append(x)
    told = []

    def network(x, t, y):
        told.append(float(t))
        return x / 2

    taken = list(process.sample(network, column(1.5), Y[:1], Ddim(steps=4)))
    assert [float(state) for _, state in taken] == pytest.approx(expected)
    assert [t for t, _ in taken] == [0.75, 0.5, 0.25, 0.0]
    assert told == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("betas", "prediction", "variance"),
    pairs_first(
        names.BETAS, names.PREDICTIONS, names.VARIANCES, prediction="noise", solver="fixed-small"
    ),
)
def test_ancestral_sampling_reaches_the_data(betas: str, prediction: str, variance: str) -> None:
    """Catches: noise at the last step, a variance with a wrong factor, a conversion with a sign."""
    process = Diffusion(betas=betas, prediction=prediction, variance=variance)
    mean, std = propagated(process, Ddpm(steps=1000), DATA)
    assert mean == pytest.approx(DATA.mean, abs=0.01)
    assert std == pytest.approx(DATA.std, abs=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("betas", names.BETAS)
def test_ddim_reaches_the_data(betas: str, eta: float) -> None:
    """Catches: eta with a wrong share of noise: the marginals must not depend on it."""
    process = Diffusion(betas=betas)
    mean, std = propagated(process, Ddim(steps=500, eta=eta), DATA)
    assert mean == pytest.approx(DATA.mean, abs=0.01)
    assert std == pytest.approx(DATA.std, abs=0.02)


def test_ddim_with_eta_1_is_ddpm() -> None:
    """Catches: two variances for the same thing: eta = 1 is the posterior's (fixed-small)."""
    process = Diffusion(variance="fixed-small")
    a, b = (
        propagated(process, Ddpm(steps=50), DATA),
        propagated(process, Ddim(steps=50, eta=1.0), DATA),
    )
    assert a == pytest.approx(b)


@pytest.mark.parametrize("prediction", names.PREDICTIONS)
@pytest.mark.parametrize("betas", names.BETAS)
@pytest.mark.parametrize("sampler", ["ode", "sde"])
def test_flow_samplers_apply(betas: str, prediction: str, sampler: str) -> None:
    """Catches: a chain's network fed t instead of k, or integrated along the vp path."""
    process = Diffusion(betas=betas, prediction=prediction)
    steps = 400
    solver = Ode(solver="heun", steps=steps) if sampler == "ode" else None
    if solver is None:
        solver = Sde(w=wt_of("sigma", scale=0.0), wt="sigma", steps=steps, last_step="mean")
    x = torch.linspace(-1.5, 2, 3, dtype=torch.float64).view(3, 1, 1, 1)
    *_, (_, end) = process.sample(
        exact_network(process, DATA), x, Y, solver, randn=lambda: torch.zeros_like(x)
    )
    alpha, sigma = (float(v) for v in process.path(torch.ones(1).double(), torch.zeros(1))[:2])
    spread = math.hypot(alpha * DATA.std, sigma)
    expected = DATA.mean + DATA.std * (x - alpha * DATA.mean) / spread
    torch.testing.assert_close(end, expected, atol=0.03, rtol=0)


def test_all_steps_are_drawn() -> None:
    """Catches: the first or the last step never trained."""
    t = Diffusion(betas=BETAS).draw_times(Draws(0, 0, torch.arange(200)))
    assert sorted(set(t.tolist())) == [0.25, 0.5, 0.75, 1.0]


POINT = Gaussian(mean=0.7, std=1e-4)


@pytest.mark.parametrize("prediction", names.PREDICTIONS)
@pytest.mark.parametrize(
    "sampler",
    [Ddpm(steps=50), Ddim(steps=50), Ddim(steps=50, eta=1.0), Ode(solver="heun", steps=200)],
    ids=["ddpm", "ddim", "ddim-1", "ode"],
)
def test_no_noise_is_left(prediction: str, sampler) -> None:
    """Catches: noise added at the last step, or an end too early: 0.01 is more than a grey
    level."""
    process = Diffusion(prediction=prediction, variance="fixed-large")
    mean, std = propagated(process, sampler, POINT)
    assert mean == pytest.approx(POINT.mean, abs=2e-3)
    assert std < 3e-3


@pytest.mark.parametrize("variance", ["fixed-small", "learned-range"])
@pytest.mark.parametrize("prediction", names.PREDICTIONS)
@pytest.mark.parametrize("loss_weight", names.LOSS_WEIGHTS)
def test_weighted_losses(prediction: str, loss_weight: str, variance: str) -> None:
    """Catches: a weight that the flow has and the chain forgets: one path, one loss; a bound that
    is weighted too, or gets into the velocity's loss."""
    torch.manual_seed(0)
    process = Diffusion(prediction=prediction, loss_weight=loss_weight, variance=variance)
    x_star, eps = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64)
    t = torch.tensor([100, 500, 900]) / 1000
    bias = torch.randn_like(x_star)
    network = exact_network(process, DATA)

    def biased(x, k, y):
        output = network(x, k, y)
        return torch.cat([output[:, :2] + 0.1 * bias, output[:, 2:]], dim=1)

    loss = process.loss(biased, x_star, Y, t=t, eps=eps)
    path = process.path(t.double(), x_star)
    x, k = path.mix(x_star, eps), (t * 1000).round().long() - 1
    output = biased(x, k.double(), Y)
    flow = Flow(prediction=prediction, loss_weight=loss_weight)
    expected = flow.regression(output[:, :2], x_star, eps, path)
    term = 0.0
    if variance == "learned-range":
        term = process.bound_term(process.chain, output, x_star, x, k, path)
    torch.testing.assert_close(loss.loss.double(), expected.loss + term, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss.velocity.double(), expected.velocity, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("betas", "steps", "std", "tails"),
    [("linear", 20, 0.2, True), ("linear", 1000, 0.2, False), (BETAS, 4, 2.0, False)],
)
def test_bound_of_the_exact_reverse_is_the_entropy(betas, steps, std: float, tails: bool) -> None:
    """Catches: a term left out, weighted twice, or in nats; the learned variance misread; a bin of
    latents beyond 1 that reaches to infinity.

    For Gaussian data p(x_{i-1} | x_i) is Gaussian, of a variance within the learned range: its
    chain is exact for any number of steps, and the bound is -log2 of a bin's probability, and
    beside it how far the last step's marginal is from the prior.
    """
    process, data = Diffusion(betas=betas), Gaussian(mean=0.1, std=std)
    chain = process.chain.respaced(steps)

    def network(x, k, y):
        i = torch.searchsorted(torch.tensor(chain.timesteps), k.long())
        path = process.path((k.double() + 1) / len(process.chain), x)
        left = 1 / (1 / data.std**2 + (path.alpha / path.sigma) ** 2)  # Var[x_* | x_i]
        # At i = 0 the step is to x_* itself, of which nothing else is known.
        own = torch.where(i > 0, chain.table("posterior_variance")[i], 0.0).view(-1, 1, 1, 1)
        low, high = (chain.table_at(name, i, x).log() for name in ("posterior_variance", "betas"))
        log_variance = (own + chain.table_at("data_weight", i, x) ** 2 * left).log()
        v = 2 * (log_variance - low) / (high - low) - 1
        return torch.cat([data.posterior(x, path)[1], v], dim=1)

    torch.manual_seed(0)
    x_star = data.mean + data.std * torch.randn(4000, 1, 1, 1, dtype=torch.float64)
    y = torch.zeros(len(x_star), dtype=torch.long)
    random = torch.Generator().manual_seed(1)

    def randn() -> torch.Tensor:
        return torch.randn(x_star.shape, generator=random, dtype=torch.float64)

    solving = process.bound(network, x_star, y, steps=steps, tails=tails, randn=randn)
    *_, (done, total, bits) = solving
    assert done == total == steps
    z = (x_star - data.mean) / data.std
    nats = float((0.5 * z**2).mean()) + math.log(data.std * (2 * math.pi) ** 0.5)
    exact_bits = nats / math.log(2) + math.log2(255 / 2)  # bins of 2/255
    mean, spread = process.chain.table("alpha_bar")[-1].sqrt() * torch.tensor([data.mean, std])
    variance = spread**2 + 1 - process.chain.table("alpha_bar")[-1]
    gap = gaussian_kl(Moments(mean, variance.log()), Moments(0 * mean, 0 * mean)) / math.log(2)
    assert float(bits.mean()) == pytest.approx(exact_bits + float(gap), abs=0.02)


def test_channels_of_a_learned_variance() -> None:
    """Catches: a head of another size than DiT's, twice the latent's channels."""
    assert Diffusion(variance="learned-range").out_channels(4) == 8
    assert Diffusion(variance="fixed-small").out_channels(4) == 4


def test_the_bound_keeps_no_graph() -> None:
    """Catches: the memory of all 1000 evaluations held for a gradient that nobody asks for."""
    process, weight = Diffusion(betas=(0.1, 0.2)), torch.ones((), requires_grad=True)
    x, y = torch.zeros(1, 2, 1, 1), torch.zeros(1, dtype=torch.long)
    network = lambda x, t, y: torch.cat([x, x], dim=1) * weight  # noqa: E731
    terms = process.bound(network, x, y, tails=True, randn=lambda: torch.ones_like(x))
    assert not any(value.requires_grad for _, _, value in terms)
