"""Power-function averages of any length, after the fact (EDM2; Karras et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

# The relative widths that are tracked (Karras et al. 2023, section 3.1).
TRACKED_STDS = (0.05, 0.10)
LEAST_STD, MOST_STD = 0.005, 0.28  # outside, the exponent is in the thousands, or negative


@lru_cache(maxsize=64)  # an overlap asks twice, and n snapshots have n^2 overlaps
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
    """Factors of the snapshots, of sum 1, whose combination is closest to the target average.

    Least squares between the weights' functions of time (Karras et al. 2023, appendix C), with the
    overlaps of the snapshots among each other (A) and with the target (b): minimise
    c^T A c - 2 b^T c subject to sum(c) = 1. Without the constraint few snapshots give sums of 0.5
    to 1.04, and every weight of the network shrinks or grows by that factor. The paper's code
    solves without it and divides by the sum; that is an average too, but never the closer one.

    Later snapshots than the target are not used; their factor is 0. Raises ValueError if none is
    left.
    """
    use = [snapshot.step <= target.step for snapshot in snapshots]
    used = [snapshot for snapshot, there in zip(snapshots, use, strict=True) if there]
    if not used:
        raise ValueError(f"no snapshot is of step {target.step} or before")
    A = torch.tensor([[overlap(a, b) for b in used] for a in used], dtype=torch.float64)
    b = torch.tensor([overlap(a, target) for a in used], dtype=torch.float64)
    # Profiles of one step have norms of all sizes: c = scale y is solved for the rounding.
    scale = A.diagonal().rsqrt()
    A, b = scale[:, None] * A * scale, scale * b
    # All y of sum 1, scale . y = 1: one of them, and an orthonormal basis of the directions that
    # leave the sum. So the sum is exact however badly conditioned A is; gelsd drops the directions
    # that A does not tell apart.
    y = scale / scale.square().sum()
    basis = torch.linalg.qr(scale[:, None], mode="complete").Q[:, 1:]
    free = torch.linalg.lstsq(basis.T @ A @ basis, basis.T @ (b - A @ y), driver="gelsd").solution
    found = iter((scale * (y + basis @ free)).tolist())
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
