"""Where time begins and ends, in training and in sampling (SiT section 3 and Table 10).

An interval follows from what has to be divided by: alpha is 0 at the noise's end of some paths,
sigma at the data's end of all.
"""

from __future__ import annotations

from typing import NamedTuple

from sitcli.core.interpolant import INTERPOLANTS
from sitcli.core.prediction import LOSS_WEIGHTS, PREDICTIONS
from sitcli.core.wt import WT

MARGIN = 1e-3  # kept from an end that something divides by
ODE_MARGIN = 1e-5


class Interval(NamedTuple):
    """Where integration starts (near noise) and ends (near data).

    jump: the velocity cannot be evaluated at the end; the last step goes to the posterior mean
    instead, as the last step of DDIM does.
    """

    start: float
    end: float
    jump: bool = False


def train_interval(interpolant: str, prediction: str, loss_weight: str) -> tuple[float, float]:
    """Times training draws from, uniformly: the whole range where the loss divides by nothing."""
    path, divides = INTERPOLANTS[interpolant], PREDICTIONS[prediction].divides_by
    if not divides and not LOSS_WEIGHTS[loss_weight].divides:
        return path.first_time, 1.0
    return path.first_time or MARGIN, 1 - MARGIN if path.ends_in_noise else 1.0


def ode_interval(interpolant: str, prediction: str) -> Interval:
    """End points of the probability-flow ODE.

    Data prediction divides by sigma, so it jumps to t = 0; score and noise divide by alpha, so
    they begin just below t = 1 where alpha is 0 there.
    """
    path, divides = INTERPOLANTS[interpolant], PREDICTIONS[prediction].divides_by
    if divides == "sigma":
        return Interval(1.0, 0.0, jump=True)
    late = divides == "alpha" and path.ends_in_noise
    return Interval(1 - ODE_MARGIN if late else 1.0, path.first_time)


def sde_interval(interpolant: str, prediction: str, wt: str, last_step_size: float) -> Interval:
    """End points of the reverse SDE before its last step.

    A w_t that is infinite where alpha is 0 begins at 1 - 1e-3, as score models do. With no last
    step the SDE stops at 1e-3, where the score is still finite.
    """
    divides = PREDICTIONS[prediction].divides_by == "alpha" or WT[wt].infinite_at_noise
    late = divides and INTERPOLANTS[interpolant].ends_in_noise
    return Interval(1 - MARGIN if late else 1.0, last_step_size or MARGIN)
