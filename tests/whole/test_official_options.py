"""What the official code's options are here: the conversions that the sampling guide states.

The official formulas are written out in the official time, 0 at the noise and 1 at the data
(github.com/willisma/SiT at 947f95b: transport/path.py and transport/integrators.py).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sitcli.core.flow import Flow, Sde
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.interpolant import INTERPOLANTS, path_at
from sitcli.core.intervals import Interval
from sitcli.core.sde import SDE_STEPS, Drift
from sitcli.core.times import time_grid
from sitcli.core.wt import wt_of
from tests.core.gaussian import Gaussian

GUIDE = Path(__file__).parents[2] / "examples" / "sampling" / "README.md"
DATA = Gaussian(mean=0.7, std=0.6)
Y = torch.zeros(3, dtype=torch.long)


def beta(t: float) -> float:
    """Of the official vp path, at official time t."""
    return 0.1 + (20 - 0.1) * (1 - t)


# d ln alpha / dt, sigma and d sigma / dt of each path at official time t.
OFFICIAL_PATHS: dict[str, Callable[[float], tuple[float, float, float]]] = {
    "linear": lambda t: (1 / t, 1 - t, -1.0),
    "gvp": lambda t: (
        math.pi / 2 / math.tan(math.pi / 2 * t),
        math.cos(math.pi / 2 * t),
        -math.pi / 2 * math.sin(math.pi / 2 * t),
    ),
    "vp": lambda t: (beta(t) / 2, math.sqrt(-math.expm1(2 * log_alpha(t))), math.nan),
}


def log_alpha(t: float) -> float:
    return -0.25 * (1 - t) ** 2 * (20 - 0.1) - 0.5 * (1 - t) * 0.1


def sbdm(path: str, t: float) -> float:
    ratio, sigma, d_sigma = OFFICIAL_PATHS[path](t)
    return beta(t) / 2 if path == "vp" else ratio * sigma**2 - sigma * d_sigma


# compute_diffusion: D of a form at norm N, and our --wt and its scale.
FORMS = {
    "sigma": (lambda path, t, N: N * OFFICIAL_PATHS[path](t)[1], "sigma", lambda N: 2 * N),
    "linear": (lambda path, t, N: N * (1 - t), "linear", lambda N: 2 * N),
    "constant": (lambda path, t, N: N, "constant", lambda N: 2 * N),
    "increasing-decreasing": (
        lambda path, t, N: N * math.sin(math.pi * t) ** 2,
        "sin2",
        lambda N: 2 * N,
    ),
    "SBDM": (lambda path, t, N: N * sbdm(path, t), "kl", lambda N: N),
}


def ours(interpolant: str, wt: str, scale: float, t: float) -> float:
    """w_t at our time 1 - t."""
    time = torch.tensor([1 - t], dtype=torch.float64)
    return float(wt_of(wt, scale=scale)(time, path_at(interpolant, time, time)))


def decreasing(t: float, N: float) -> float:
    return 0.25 * (N * math.cos(math.pi * t) + 1) ** 2


@pytest.mark.parametrize("interpolant", OFFICIAL_PATHS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_diffusion_forms(form: str, interpolant: str, norm: float) -> None:
    """Catches: a factor of two between w_t and the official D = w/2, in either direction of time:
    2 D(norm) is w_t at the scale that the guide states."""
    D, wt, scale = FORMS[form]
    for t in (0.03, 0.25, 0.5, 0.77, 0.96):
        expected = 2 * D(interpolant, t, norm)
        assert ours(interpolant, wt, scale(norm), t) == pytest.approx(expected, rel=1e-12)


def test_decreasing_has_its_norm_inside_the_square() -> None:
    """Catches: a scale of twice the norm, or of any number, where only a norm of 1 has one."""
    times = (0.1, 0.4, 0.8)
    for t in times:
        assert ours("linear", "decreasing", 1.0, t) == pytest.approx(2 * decreasing(t, 1.0))
    ratios = [2 * decreasing(t, 2.0) / ours("linear", "decreasing", 1.0, t) for t in times]
    assert max(ratios) > 1.5 * min(ratios)


def test_repas_sde_is_linear_at_twice() -> None:
    """samplers.py of github.com/sihyun-yu/REPA: compute_diffusion(t) = 2 t, in our time."""
    for interpolant in INTERPOLANTS:
        assert ours(interpolant, "linear", 2.0, 1 - 0.3) == pytest.approx(2 * 0.3)


def sigma_to_time(interpolant: str, sigma: float) -> float:
    """The guide's three formulas."""
    return {
        "linear": sigma / (1 + sigma),
        "gvp": 2 / math.pi * math.atan(sigma),
        "vp": (math.sqrt(0.01 + 39.8 * math.log(1 + sigma**2)) - 0.1) / 19.9,
    }[interpolant]


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
@pytest.mark.parametrize("sigma", [0.01, 0.28, 1.0, 2.9, 20.0])
def test_times_of_a_noise_level(interpolant: str, sigma: float) -> None:
    """Catches: a formula after which sigma_t / alpha_t is not the sigma that was asked for."""
    t = torch.tensor([sigma_to_time(interpolant, sigma)], dtype=torch.float64)
    path = path_at(interpolant, t, t)
    assert float(path.sigma / path.alpha) == pytest.approx(sigma, rel=1e-9)


def test_the_guides_table_of_noise_levels() -> None:
    """Catches: a figure of the guide that its own formulas do not give."""
    text = GUIDE.read_text()
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M)
    assert len(rows) == 5
    for sigma, *times in rows:
        for interpolant, time in zip(("linear", "gvp", "vp"), times, strict=True):
            assert f"{sigma_to_time(interpolant, float(sigma)):.4f}" == time
    # EDM2's training/encoders.py: raw_std, brought to final_std 0.5.
    stds = [0.18215 * std for std in (4.17, 4.62, 3.71, 3.28)]
    factor = math.sqrt(sum(std**2 for std in stds) / 4) / 0.5
    assert [f"{factor / 2:.2f}", f"{factor:.2f}"] == ["0.72", "1.45"]
    low, high = (sigma_to_time("linear", factor * sigma) for sigma in (0.28, 2.9))
    assert f"--cfg-interval {low:.3f},{high:.3f}" in text


def test_a_guidance_interval_holds_its_ends() -> None:
    """Catches: another interval than REPA's, low <= t <= high, both ends included."""
    guidance = Guidance(null_class=0, scale=2.0, interval=(0.25, 0.75))
    network = GuidedNetwork(lambda x, t, y: y.to(x).view(-1, 1, 1, 1).expand_as(x), guidance)
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    out = network(torch.zeros(5, 1, 1, 1), t, torch.ones(5, dtype=torch.long))
    assert out.flatten().tolist() == [1, 2, 2, 2, 1]


def official_heun(drift: Callable, x: torch.Tensor, t: float, s: float, z: torch.Tensor):
    """integrators.py __Heun_step: noise first, then a Heun step of the drift from there."""
    h = t - s
    hat = x + (drift(x, t).w * h).sqrt() * z
    first = drift(hat, t).sde
    second = drift(hat - h * first, s).sde
    return hat - h / 2 * (first + second)


def error_of(step: Callable, steps: int) -> float:
    """Of the variance at t = 0.3, from the exact one at t = 0.9, under w_t = 2 sigma_t."""
    flow = Flow(interpolant="linear")
    network = DATA.network("linear", "velocity")
    sde = Sde(w=wt_of("sigma", scale=2.0), wt="sigma")

    def drift(x: torch.Tensor, t: float) -> Drift:
        return flow.drift(network, x, Y, x.new_full((3,), t), sde)

    # Each step is affine in the state and its noise: (0, 0), (1, 0) and (0, 1) tell all of it.
    x = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    variance = DATA.marginal("linear", 0.9)[1] ** 2
    for t, s in itertools.pairwise(time_grid(Interval(0.9, 0.3), steps)):
        c, a, b = step(drift, x, t, s, z).flatten().tolist()
        variance = (a - c) ** 2 * variance + (b - c) ** 2
    return abs(variance - DATA.marginal("linear", 0.3)[1] ** 2)


def test_the_official_stochastic_heun_is_of_first_order() -> None:
    """Catches: a guide that calls the two methods alike, or takes the one for the other."""
    for step, order in (
        (official_heun, 1),
        (SDE_STEPS["euler-maruyama"].step, 1),
        (SDE_STEPS["heun"].step, 2),
    ):
        assert math.log2(error_of(step, 160) / error_of(step, 320)) == pytest.approx(order, abs=0.1)
    assert error_of(SDE_STEPS["heun"].step, 40) < 0.1 * error_of(official_heun, 40)


@pytest.mark.parametrize("prediction", ["velocity", "noise"])
@pytest.mark.parametrize("interpolant", ["linear", "gvp", "vp"])
def test_the_loss_of_kl_eta_is_the_velocitys(interpolant: str, prediction: str) -> None:
    """Catches: L_t of another quantity, a sum over the elements, or a loss without its floor.

    For data N(m, s^2) the exact network's L_t is, per element, Var(x'_t | x_t) =
    W^2 s^2 / (alpha^2 s^2 + sigma^2), where W = alpha sigma' - sigma alpha'.
    """
    number, generator = 40_000, torch.Generator().manual_seed(0)
    x_star = DATA.mean + DATA.std * torch.randn(number, 4, 1, 1, generator=generator)
    eps = torch.randn(number, 4, 1, 1, generator=generator)
    flow = Flow(interpolant=interpolant, prediction=prediction)
    y, t = torch.zeros(number, dtype=torch.long), torch.full((number,), 0.4)
    network = DATA.network(interpolant, prediction)
    found = float(flow.loss(network, x_star, y, t=t, eps=eps).velocity.mean())
    path = path_at(interpolant, t[:1].double(), torch.zeros(1).double())
    expected = path.W**2 * DATA.std**2 / (path.alpha**2 * DATA.std**2 + path.sigma**2)
    # The mean of 160,000 squares of a normal: its standard error is sqrt(2 / 160,000) = 0.35 %.
    assert found == pytest.approx(float(expected), rel=5 * math.sqrt(2 / 160_000))
