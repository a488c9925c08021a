"""The chain of the discrete process: schedules, posteriors and likelihoods by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli import names
from sitcli.core.chain import (
    Chain,
    Moments,
    cosine_betas,
    discretised_gaussian_nll,
    gaussian_kl,
    linear_betas,
)
from sitcli.core.diffusion import Diffusion
from sitcli.core.interpolant import path_at

BETAS = (0.1, 0.2, 0.3, 0.4)
ABAR = (0.9, 0.72, 0.504, 0.3024)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("betas", "step", "expected"),
    [
        # The definitions in 50-digit arithmetic (mpmath).
        (linear_betas, 0, (1e-4, 0.9999)),
        (linear_betas, 1, (0.0001199199199199199, 0.9997800920720721)),
        (linear_betas, 249, (0.00506006006006006, 0.5240853738253605)),
        (linear_betas, 500, (0.01005995995995996, 0.0777966583650239)),
        (linear_betas, 999, (0.02, 4.035829765375683e-05)),
        (cosine_betas, 0, (4.12842248217778e-05, 0.9999587157751782)),
        (cosine_betas, 1, (4.614175273669451e-05, 0.999912575927368)),
        (cosine_betas, 249, (0.001321496636629151, 0.8470121613269047)),
        (cosine_betas, 500, (0.003155691441585003, 0.4922851724488026)),
        (cosine_betas, 999, (0.999, 2.428766907034468e-09)),  # cut at 0.999
    ],
)
def test_schedules_at_five_steps(betas, step: int, expected: tuple[float, float]) -> None:
    """Catches: another end of the schedule, an index off by one, or abar kept in float32."""
    chain = Chain(betas())
    assert float(chain.table("betas")[step]) == pytest.approx(expected[0], rel=1e-11)
    assert float(chain.table("alpha_bar")[step]) == pytest.approx(expected[1], rel=1e-11)


def test_posterior_of_four_steps_by_hand() -> None:
    """Catches: the posterior's weights, or the variance of step 0 and of its logarithm.

    By Bayes' rule: q(x_{i-1} | x_i, x_*) is the product of N(sqrt(abar') x_*, 1 - abar') and of
    N(x_i / sqrt(1 - beta), beta / (1 - beta)) in x_{i-1}.
    """
    chain = Chain(torch.tensor(BETAS))
    torch.testing.assert_close(chain.table("alpha_bar"), torch.tensor(ABAR).double())
    x_star, x = column(0.5), column(-0.25)
    for i, (beta, before) in enumerate(zip(BETAS, (1.0, *ABAR), strict=False)):
        found = chain.posterior(x_star, x, torch.tensor([i]))
        if i == 0:
            assert float(found.mean) == pytest.approx(0.5)
            assert float(found.log_variance.exp()) == pytest.approx(0.2 * 0.1 / 0.28)  # step 1's
            continue
        precision = 1 / (1 - before) + (1 - beta) / beta
        mean = (before**0.5 * 0.5 / (1 - before) + (1 - beta) ** 0.5 * -0.25 / beta) / precision
        assert float(found.mean) == pytest.approx(mean)
        assert float(found.log_variance.exp()) == pytest.approx(1 / precision)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_sum_to_one(dtype: torch.dtype) -> None:
    """Catches: bins that overlap or leave gaps, a tail lost, a NaN far out."""
    bytes_ = (torch.arange(256, dtype=dtype) / 127.5 - 1).view(-1, 1, 1, 1)
    for mean, std in [(0.1, 0.3), (0.95, 0.02), (-1.2, 0.5)]:
        p = Moments(torch.full_like(bytes_, mean), torch.full_like(bytes_, 2 * math.log(std)))
        nll = discretised_gaussian_nll(bytes_, p)
        assert bool(torch.isfinite(nll).all())
        assert float((-nll).exp().sum()) == pytest.approx(1, abs=1e-4)
    far = discretised_gaussian_nll(
        torch.tensor([3.0, -3.0, 0.9, -0.9]).to(dtype),
        Moments(torch.zeros(4, dtype=dtype), torch.full((4,), -9.2, dtype=dtype)),
    )
    assert bool(torch.isfinite(far).all())
    assert float(far[0]) == pytest.approx(float(far[1]), rel=1e-3)
    assert float(far[2]) == pytest.approx(float(far[3]), rel=1e-3)


def test_kl_of_gaussians() -> None:
    """Catches: the KL the other way round, or variances read as deviations."""
    p = Moments(torch.tensor(1.0), torch.tensor(math.log(4.0)))
    q = Moments(torch.tensor(0.0), torch.tensor(math.log(9.0)))
    assert float(gaussian_kl(p, q)) == pytest.approx(math.log(3 / 2) + 5 / 18 - 0.5)


def test_respacing_keeps_both_ends() -> None:
    """Catches: an integer stride that never reaches step 999, or betas of the full chain."""
    chain = Chain(linear_betas())
    short = chain.respaced(250)
    assert [short.timesteps[i] for i in (0, 1, 2, 248, 249)] == [0, 4, 8, 995, 999]
    torch.testing.assert_close(
        short.table("alpha_bar"), chain.table("alpha_bar")[list(short.timesteps)]
    )
    assert chain.respaced(1000).timesteps == chain.timesteps
    assert chain.respaced(1).timesteps == (999,)
    with pytest.raises(ValueError, match="1000 steps, not 1001"):
        chain.respaced(1001)


def test_learned_range_ends() -> None:
    """Catches: v read as [0, 1], or its two ends swapped."""
    process, x = Diffusion(betas=BETAS), column(0.2)
    path = process.path(torch.tensor([0.75]).double(), x)
    for v, expected in [(-1.0, 0.3 * 0.28 / 0.496), (1.0, 0.3)]:
        output = torch.cat([x, torch.full_like(x, v)], dim=1)
        moments, _, _ = process.reverse(process.chain, output, x, torch.tensor([2]), path)
        assert float(moments.log_variance.exp()) == pytest.approx(expected)


def test_the_path_passes_through_the_chain() -> None:
    """Catches: the continuous view off by a step, or with another derivative than the chain's."""
    process = Diffusion()
    t = torch.tensor([1, 2, 400, 1000], dtype=torch.float64) / 1000
    path = process.path(t, t)
    torch.testing.assert_close(path.alpha**2, process.chain.table("alpha_bar")[[0, 1, 399, 999]])
    inside = torch.tensor([0.3004, 0.7007], dtype=torch.float64)
    h = 1e-5
    ahead, behind = process.path(inside + h, t[:2]), process.path(inside - h, t[:2])
    here = process.path(inside, t[:2])
    torch.testing.assert_close(
        here.d_alpha, (ahead.alpha - behind.alpha) / (2 * h), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        here.d_sigma, (ahead.sigma - behind.sigma) / (2 * h), rtol=1e-6, atol=0
    )
    vp = path_at("vp", inside, inside)
    torch.testing.assert_close(here.alpha, vp.alpha, rtol=0.03, atol=0)
    assert process.network_time(t).tolist() == pytest.approx([0, 1, 399, 999], abs=1e-9)


def test_the_path_has_no_kinks() -> None:
    """Catches: beta(t) that jumps at every step, at which adaptive solvers stumble."""
    for betas in names.BETAS:
        process = Diffusion(betas=betas)
        k = torch.tensor([1, 10, 500, 998], dtype=torch.float64)
        before, after = (process.path((k + h) / 1000, k).d_alpha for h in (-2e-3, 2e-3))
        torch.testing.assert_close(before, after, rtol=2e-3, atol=0)


def test_fixed_large_is_beta_but_for_the_first() -> None:
    """Catches: beta_0 at the last step's likelihood, far below what the step leaves."""
    process, x = Diffusion(betas=BETAS, variance="fixed-large"), torch.zeros(4, 1, 1, 1)
    i = torch.arange(4)
    path = process.path((i + 1).double() / 4, x)
    moments, _, _ = process.reverse(process.chain, x, x, i, path)
    expected = [0.2 * 0.1 / 0.28, 0.2, 0.3, 0.4]
    assert moments.log_variance.exp().flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "kept"), [(1, (3,)), (2, (0, 3)), (3, (0, 2, 3)), (4, tuple(range(4)))]
)
def test_the_steps_that_respacing_keeps(steps: int, kept: tuple[int, ...]) -> None:
    """Catches: a chain of two steps that is one of one, or steps that are not ADM's: multiples of
    3 / (steps - 1), rounded to even."""
    assert Chain(torch.tensor(BETAS)).respaced(steps).timesteps == kept


def test_the_paths_slope_by_hand() -> None:
    """Catches: slopes at other places than the ends of the pieces, or one that is lost.

    d log abar / dt is S times the slope at a step: at the ends the first and the last piece's own,
    between two pieces their harmonic mean.
    """
    rises = [math.log1p(-beta) for beta in BETAS]
    inner = [2 * a * b / (a + b) for a, b in zip(rises[1:], rises[:-1], strict=True)]
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    path = Chain(torch.tensor(BETAS, dtype=torch.float64)).path(times)
    found = 2 * path.d_alpha / path.alpha
    expected = [4 * slope for slope in (rises[0], *inner, rises[-1])]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
