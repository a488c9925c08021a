"""Power-function averages of any length, after the fact (EDM2; Karras et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

# The relative widths that are tracked (Karras et al. 2023, section 3.1).
TRACKED_STDS = (0.05, 0.10)
LEAST_STD, MOST_STD = 0.005, 0.28  # outside, the exponent is in the thousands, or negative


def power_exponent(std: float) -> float:
    """gamma of the average whose weights p(tau) = (gamma+1) tau^gamma / t^(gamma+1) have this std.

    std is relative to t. Karras et al. 2023 ("Analyzing and Improving the Training Dynamics of
    Diffusion Models"), eq. 3 (std = sqrt(gamma+1) / ((gamma+2) sqrt(gamma+3))) solved for gamma:
    its equation's only positive root, by bisection. Raises ValueError outside LEAST_STD..MOST_STD.
    """
    if not LEAST_STD <= std <= MOST_STD:
        raise ValueError(f"a relative width is between {LEAST_STD} and {MOST_STD}, not {std:g}")
    low, high = 0.0, 1.0
    while _relative_std(high) > std:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _relative_std(middle) > std else (low, middle)
    return (low + high) / 2


def _relative_std(gamma: float) -> float:
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def power_decay(step: int, gamma: float) -> float:
    """The decay of update `step` (from 0): (1 - 1/t)^(gamma+1), t = step + 1 (eq. 2).

    The first update takes the weights as they are.
    """
    return (1 - 1 / (step + 1)) ** (gamma + 1)


class Snapshot(NamedTuple):
    """An average as it stood after `step` updates; std: its relative width."""

    step: int
    std: float


def overlap(a: Snapshot, b: Snapshot) -> float:
    """The integral of the product of two averages' weights over time, in 1/steps.

    Karras et al. 2023, appendix C.
    """
    p, q = power_exponent(a.std), power_exponent(b.std)
    least = math.log(min(a.step, b.step))
    log = (p + q + 1) * least - (p + 1) * math.log(a.step) - (q + 1) * math.log(b.step)
    return (p + 1) * (q + 1) / (p + q + 1) * math.exp(log)


def posthoc_coefficients(snapshots: Sequence[Snapshot], target: Snapshot) -> list[float]:
    """Factors of the snapshots whose sum is closest to the target average.

    Least squares between the weights' functions of time (Karras et al. 2023, appendix C): A c = b
    with the overlaps of the snapshots among each other and with the target. Later snapshots than
    the target are not used.
    """
    use = [snapshot.step <= target.step for snapshot in snapshots]
    used = [snapshot for snapshot, there in zip(snapshots, use, strict=True) if there]
    if not used:
        raise ValueError(f"no snapshot is of step {target.step} or before")
    A = torch.tensor([[overlap(a, b) for b in used] for a in used], dtype=torch.float64)
    b = torch.tensor([overlap(a, target) for a in used], dtype=torch.float64)
    # Profiles of one step have norms of all sizes: the solution is scaled for the rounding.
    scale = A.diagonal().rsqrt()
    solved = torch.linalg.lstsq(scale[:, None] * A * scale, scale * b, driver="gelsd").solution
    found = iter((scale * solved).tolist())
    return [next(found) if there else 0.0 for there in use]


def posthoc_error(
    snapshots: Sequence[Snapshot], coefficients: Sequence[float], target: Snapshot
) -> float:
    """Norm of the difference between the sum and the target's weights, over the target's norm.

    0 is an exact sum.
    """
    own = overlap(target, target)
    cross = sum(c * overlap(s, target) for c, s in zip(coefficients, snapshots, strict=True))
    both = sum(
        c * e * overlap(s, r)
        for c, s in zip(coefficients, snapshots, strict=True)
        for e, r in zip(coefficients, snapshots, strict=True)
    )
    return math.sqrt(max(0.0, own - 2 * cross + both) / own)
