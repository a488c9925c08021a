"""Log-likelihoods against the closed forms of Gaussian data, and their units by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sitcli import names
from sitcli.core.flow import Flow, Ode
from sitcli.core.likelihood import (
    GREY_BITS,
    bits_per_dim,
    dequantise,
    log_likelihood,
    standard_normal,
)
from sitcli.core.transport import Ends, ends_of
from tests.core.gaussian import Gaussian

PAIRS = list(itertools.product(names.INTERPOLANTS, names.PREDICTIONS))
SHAPE = (3, 2, 2)
SIZE = math.prod(SHAPE)
RK4 = Ode(solver="rk4", steps=50)


def signs(number: int, probes: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (number, probes, *SHAPE), generator=random) * 2.0 - 1.0


def estimate(network, x: Tensor, probes: Tensor | None, ode: Ode = RK4, **process) -> Tensor:
    """(B, P)."""
    y = torch.zeros(len(x), dtype=torch.long)
    probes = None if probes is None else probes.to(x.dtype)
    flow, ends = Flow(**process), ends_of(Flow(**process))
    *_, (t, value) = log_likelihood(flow, network, x, y, probes=probes, ode=ode, ends=ends)
    assert t == ends.noise
    return value


def draw(data: Gaussian, number: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return data.mean + data.std * torch.randn(number, *SHAPE, generator=random)


def model_density(data: Gaussian, interpolant: str, ends: Ends, x: Tensor) -> Tensor:
    """What a perfect network gives: the prior at the noise, which vp does not quite reach."""
    mean, std = (part / ends.scale for part in data.marginal(interpolant, ends.noise))
    noise = mean + std * (x.flatten(1) - data.mean) / data.std
    return standard_normal(noise) + SIZE * math.log(std / data.std)


@pytest.mark.parametrize(("interpolant", "prediction"), PAIRS)
def test_gaussian_data(interpolant: str, prediction: str) -> None:
    """Catches: a sign of the divergence, an end left out, a factor of the Jacobian: in float32, to
    1e-4 nats a dimension."""
    data = Gaussian(mean=0.3, std=0.2)
    x, process = draw(data, 4), dict(interpolant=interpolant, prediction=prediction)
    found = estimate(data.network(interpolant, prediction), x, signs(4, 1), **process)
    expected = model_density(data, interpolant, ends_of(Flow(**process)), x)
    assert float((found[:, 0] - expected).abs().max()) / SIZE < 1e-4
    density = standard_normal((x.flatten(1) - data.mean) / data.std) - SIZE * math.log(data.std)
    # alpha of the data is left in the noise, and the prior is off by alpha m z: less than alpha, as
    # m is 0.3 and z is below 3 on average over the dimensions.
    alpha = Flow(**process).alpha_sigma(ends_of(Flow(**process)).noise)[0]
    assert float((expected - density).abs().max()) / SIZE < 1e-4 + alpha


@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
@pytest.mark.parametrize("ode", [RK4, Ode(solver="dopri5")], ids=["rk4", "dopri5"])
def test_data_as_narrow_as_a_grey_level(interpolant: str, ode: Ode) -> None:
    """Catches: equal steps, which pass over all that happens next to the data (1 nat a
    dimension)."""
    data = Gaussian(mean=0.3, std=0.003)
    x = draw(data, 4)
    found = estimate(
        data.network(interpolant, "velocity"), x, signs(4, 1), ode, interpolant=interpolant
    )
    expected = model_density(data, interpolant, ends_of(Flow(interpolant=interpolant)), x)
    # On vp the ODE ends where sigma is 0.001, a third of this std.
    tolerance = 0.06 if interpolant == "vp" else 2e-3
    assert float((found[:, 0] - expected).abs().max()) / SIZE < tolerance


def full_gaussian() -> tuple:
    """N(m, S) with a full S over the 12 dimensions: (network of the linear velocity, m, S)."""
    random = torch.Generator().manual_seed(2)
    mean = torch.randn(SIZE, generator=random, dtype=torch.float64) * 0.3
    root = torch.randn(SIZE, SIZE, generator=random, dtype=torch.float64) * 0.2
    covariance = root @ root.T + 0.05 * torch.eye(SIZE, dtype=torch.float64)

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        t = t.view(-1, 1, 1)
        noise = t**2 * torch.eye(SIZE, dtype=torch.float64)
        centred = x.flatten(1)[:, :, None] - (1 - t) * mean[:, None]
        inner = torch.linalg.solve((1 - t) ** 2 * covariance + noise, centred)
        # x' = -x_* + eps, with the posterior means of both.
        velocity = -mean[:, None] - (1 - t) * (covariance @ inner) + t * inner
        return velocity[:, :, 0].view(x.shape)

    return network, mean, covariance


def test_hutchinson_is_unbiased_for_a_full_jacobian() -> None:
    """Catches: probes that are not of mean square 1, or a transposed, diagonal or partial
    product."""
    network, mean, covariance = full_gaussian()
    gaussian = torch.distributions.MultivariateNormal(mean, covariance)
    x = gaussian.sample((2,)).view(2, *SHAPE)
    expected = gaussian.log_prob(x.flatten(1))
    exact = estimate(network, x, None)
    assert exact.shape == (2, 1)
    torch.testing.assert_close(exact[:, 0], expected, atol=1e-4, rtol=0)
    estimates = estimate(network, x, signs(2, 200))
    error = estimates.std(1) / 200**0.5
    assert float(error.min()) > 0.01  # the probes do matter here
    assert float(((estimates.mean(1) - expected) / error).abs().max()) < 3


def test_the_probe_is_fixed_within_a_solve() -> None:
    """Catches: a probe drawn at each call: the estimates of one probe then differ between solvers,
    and 4 times as many steps change them."""
    network, mean, _ = full_gaussian()
    x = mean.view(1, *SHAPE) + 0.1
    fine, coarse = (
        estimate(network, x, signs(1, 3), Ode(solver="rk4", steps=n)) for n in (200, 50)
    )
    torch.testing.assert_close(coarse, fine, atol=1e-3, rtol=0)
    adaptive = estimate(network, x, signs(1, 3), Ode(solver="dopri5", rtol=1e-6, atol=1e-6))
    torch.testing.assert_close(adaptive, fine, atol=1e-3, rtol=0)
    assert float((fine - fine.roll(1, 1)).abs().min()) > 0.01


def test_estimates_do_not_depend_on_the_batch_or_on_other_probes() -> None:
    """Catches: probes or times of one image used for another, in dopri5's shrinking batch too."""
    network, mean, _ = full_gaussian()
    x = mean.view(1, *SHAPE) + torch.linspace(-1, 1, 3, dtype=torch.float64).view(3, 1, 1, 1)
    probes = signs(3, 2)
    for ode in (Ode(solver="heun", steps=10), Ode(solver="dopri5", rtol=1e-4, atol=1e-4)):
        together = estimate(network, x, probes, ode)
        for i in range(3):
            alone = estimate(network, x[i : i + 1], probes[i : i + 1], ode)
            torch.testing.assert_close(alone[0], together[i], atol=1e-9, rtol=0)
    one = estimate(network, x, probes[:, 1:])
    torch.testing.assert_close(one[:, 0], estimate(network, x, probes)[:, 1])


def test_units_by_hand() -> None:
    """Catches: log2 for ln, the grey level's width inverted, or a wrong number of dimensions."""
    assert float(bits_per_dim(torch.tensor(12 * math.log(2)), 4)) == pytest.approx(3.0)
    # Uniform over all bytes: density 127.5 / 256 a dimension over [-1, 1], so 8 bits a byte.
    nats = torch.tensor(-5 * math.log(127.5 / 256))
    assert float(bits_per_dim(nats, 5)) + GREY_BITS == pytest.approx(8.0)


def test_dequantised_bytes_fill_their_own_grey_level() -> None:
    """Catches: levels that overlap, leave gaps, or are not those that pictures are decoded to."""
    from sitcli.autoencoders.base import to_uint8

    images = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    low, high = (dequantise(images, torch.full_like(images, u)) for u in (0.0, 1.0))
    torch.testing.assert_close(high[0, 0].flatten()[:-1], low[0, 0].flatten()[1:])
    inside = dequantise(images, torch.rand(images.shape) * 0.98 + 0.01)
    assert torch.equal(to_uint8(inside)[0, :, :, 0].flatten(), images[0, 0].flatten().byte())
