"""Where time begins and ends, in training and in sampling (SiT section 3 and Table 10).

An interval follows from what has to be divided by: alpha is 0 at the noise's end of some paths,
sigma at the data's end of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sitcli.core.interpolant import INTERPOLANTS
from sitcli.core.prediction import LOSS_WEIGHTS, PREDICTIONS
from sitcli.core.wt import WT

MARGIN = 1e-3  # kept from an end that something divides by
# Sampling begins where the network's estimate of the data is wrong by at most this, root mean
# square over the elements. Noise prediction on linear after 2,000 steps on CIFAR-10, 8 x 8 pixels
# (SiT-Mi/2): 4 gives a Frechet distance of 32, 2 gives 13, and a start at 0.999 gives 65,000. With
# 32 x 32 pixels (SiT-Mi/4, data of std 0.53) 8, 4 and 2 give a std of 1.24, 0.87 and 0.62, but that
# of the images' means, 0.28 in the data, is 0.44, 0.26 and 0.15: a lower start loses them.
MOST_DATA_ERROR = 2.0
EARLIEST_START = 0.5
# The noise error is taken at this time: closer to t = 1 the mean over a bin of the loss curve
# depends on how training drew its times, further away the error is not the network's alone.
ERROR_TIME = 0.925
LAST_SIGMA = 0.04  # sigma where the SDE's last step begins: t = 0.04 on linear (SiT appendix)


class Interval(NamedTuple):
    """Where integration starts (near noise) and ends (near data).

    jump: the velocity cannot be evaluated at the end; the last step goes to the posterior mean
    instead, as the last step of DDIM does.
    scale: the state at the start is this times standard normal noise.
    jump_from: the time at which that last step begins, whatever the number of steps; 0: the grid's
    last one before the end.
    """

    start: float
    end: float
    jump: bool = False
    scale: float = 1.0
    jump_from: float = 0.0


# (alpha, sigma) of a path at one time.
AlphaSigma = Callable[[float], tuple[float, float]]


def train_interval(interpolant: str, prediction: str, loss_weight: str) -> tuple[float, float]:
    """Times training draws from, uniformly: the whole range where the loss divides by nothing."""
    path, divides = INTERPOLANTS[interpolant], PREDICTIONS[prediction].divides_by
    if not divides and not LOSS_WEIGHTS[loss_weight].divides:
        return path.first_time, 1.0
    return path.first_time or MARGIN, 1 - MARGIN if path.ends_in_noise else 1.0


def ode_interval(interpolant: str, prediction: str) -> Interval:
    """End points of the probability-flow ODE, of a network about whose error nothing is known.

    Data prediction divides by sigma, so it jumps to t = 0. Score and noise prediction divide by
    alpha: where that is 0 at t = 1 they begin at the last time that training has seen.
    """
    path, divides = INTERPOLANTS[interpolant], PREDICTIONS[prediction].divides_by
    if divides == "sigma":
        return Interval(1.0, 0.0, jump=True)
    late = divides == "alpha" and path.ends_in_noise
    return Interval(1 - MARGIN if late else 1.0, path.first_time)


def sde_interval(interpolant: str, prediction: str, wt: str, last_step_size: float) -> Interval:
    """End points of the reverse SDE before its last step.

    A w_t that is infinite where alpha is 0 begins at 1 - 1e-3, as score models do. With no last
    step the SDE stops at 1e-3, where the score is still finite.
    """
    divides = PREDICTIONS[prediction].divides_by == "alpha" or WT[wt].infinite_at_noise
    late = divides and INTERPOLANTS[interpolant].ends_in_noise
    return Interval(1 - MARGIN if late else 1.0, last_step_size or MARGIN)


def beginning_at(interval: Interval, start: float, alpha_sigma: AlphaSigma) -> Interval:
    """The interval from another start, where the state is sigma_start over sigma_1 wide.

    alpha_start x_* is left out: it changes the variance of x_start by alpha^2 x_*^2.
    """
    return interval._replace(start=start, scale=alpha_sigma(start)[1] / alpha_sigma(1.0)[1])


def reliable_start(noise_error: float, latest: float, alpha_sigma: AlphaSigma) -> float:
    """The latest time at which x_* = (x - sigma eps) / alpha is off by MOST_DATA_ERROR at most.

    noise_error: root mean square error of eps per element, near t = 1.
    An error of eps enters x_* multiplied by sigma / alpha, 999 times at t = 0.999 on linear, and
    the first step of the ODE would carry it into the state, where the network has not seen it.
    """
    if noise_error == 0:
        return latest

    def exceeds(t: float) -> bool:
        alpha, sigma = alpha_sigma(t)
        return sigma * noise_error > MOST_DATA_ERROR * alpha

    return min(latest, round(time_where(exceeds, low=EARLIEST_START, high=latest), 4))


def last_step_size(alpha_sigma: AlphaSigma) -> float:
    """The time t at which sigma_t is LAST_SIGMA, where the SDE's last step begins.

    0.04 on linear, as in SiT's appendix. It uses t = 0.04 on all paths, where sigma is 0.063 on
    gvp and 0.14 on vp: a last step from there takes 2% and 9% off the standard deviation of
    Gaussian data of 0.5 (w_KL, 250 steps).
    """
    return round(time_where(lambda t: alpha_sigma(t)[1] > LAST_SIGMA), 4)


def time_where(holds: Callable[[float], bool], *, low: float = 0.0, high: float = 1.0) -> float:
    """The time in [low, high] from which on `holds` is true, by bisection; high if it never is."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
