"""The kernel distance (KID; Binkowski et al. 2018)."""

from __future__ import annotations

from functools import partial

import numpy as np

from sitcli.metrics.bootstrap import bootstrap, numpy_seed
from sitcli.metrics.metric import Evidence, Measured

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000


def kernel_distance(a: np.ndarray, b: np.ndarray, *, seed: int) -> tuple[float, float]:
    """KID's mean and spread over 100 subsets of min(1000, N) from features (N, D) float32.

    The estimate is unbiased, so it can be slightly negative for equal distributions. Binkowski et
    al. 2018. The subsets and the estimate are torch-fidelity's. The kernel is computed in float64,
    since the estimate is a small difference of cubes: for features around 100, float32 gives 1e5
    where 0 is right.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    size = kid_subset_size(len(a), len(b))
    choose = np.random.RandomState(numpy_seed(seed))
    estimates = []
    for _ in range(KID_SUBSETS):
        first = a[choose.choice(len(a), size, replace=False)].astype(np.float64)
        second = b[choose.choice(len(b), size, replace=False)].astype(np.float64)
        estimates.append(kernel_mmd(first, second, kid_kernel="poly"))
    return float(np.mean(estimates)), float(np.std(estimates))


def kid_subset_size(num_a: int, num_b: int) -> int:
    """Images in each of KID's subsets."""
    return min(KID_SUBSET_SIZE, num_a, num_b)


def measure_kernel_distance(e: Evidence) -> list[Measured]:
    """KID to the reference; its floor is KID between the two halves of the reference."""
    fake, real = e.fake["pool"].features, e.real["pool"].features
    value, spread = kernel_distance(fake, real, seed=e.seed)
    first, second = e.real["pool"].halves()
    floor = kernel_distance(first, second, seed=e.seed)[0] if len(first) >= 2 else None
    size = kid_subset_size(len(fake), len(real))
    recipe = {"kernel": "polynomial", "subsets": KID_SUBSETS, "subset_size": size}

    def again(rows: np.ndarray) -> float:
        return kernel_distance(rows, real, seed=e.seed)[0]

    resamples = partial(bootstrap, fake, again)
    return [Measured("KID", value, floor, recipe, spread=spread, resamples=resamples)]
