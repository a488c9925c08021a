"""The kernel distance (KID; Binkowski et al. 2018)."""

from __future__ import annotations

import numpy as np

from sitcli.metrics.metric import Evidence, Measured, Real
from sitcli.metrics.subsamples import numpy_seed

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
ERROR_IMAGES = 4000  # of a side, for the standard error: bounds memory and time


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
    """KID to the reference, and that of as many images of the reference to its others."""
    fake, real = e.fake["pool"].features, e.real["pool"].features
    value, spread = kernel_distance(fake, real, seed=e.seed)
    size = kid_subset_size(len(fake), len(real))
    recipe = {"kernel": "polynomial", "subsets": KID_SUBSETS, "subset_size": size}
    own = None
    if (sides := e.real_sides("pool")) is not None:
        own = Real(kernel_distance(*sides, seed=e.seed)[0], tuple(map(len, sides)))

    def error() -> float:
        return kernel_error(fake, real, seed=e.seed)

    return [Measured("KID", value, own, recipe, spread=spread, error=error)]


def kernel_error(a: np.ndarray, b: np.ndarray, *, seed: int) -> float:
    """The standard deviation of KID over independent draws of `a` (N, D), with `b` held fixed.

    The variance of a U-statistic (Hoeffding 1948, eq. 5.13) with the kernel h(x, y) = k(x, y) -
    c(x) - c(y), c the mean of k over `b`. Its moments come from at most 4,000 images of each side.
    With U_N over all images and U_m over a subset of both sides, in which c is the mean over m of
    `b`, the mean over S subsets has the variance Var U_N + (Var U_m - Var U_N) / S. Needs 4 images.
    """
    size, num, others = kid_subset_size(len(a), len(b)), len(a), len(b)
    choose = np.random.RandomState(numpy_seed(seed))
    a, b = (
        x[np.sort(choose.permutation(len(x))[:ERROR_IMAGES])].astype(np.float64) for x in (a, b)
    )
    across = _kernel(a, b)
    n, c = len(a), across.mean(axis=1)
    across -= c[:, None] + across.mean(axis=0) - across.mean()
    h = _kernel(a, a) - c[:, None] - c
    np.fill_diagonal(h, 0)
    rows, squares = h.sum(axis=1), float(np.square(h).sum())
    # Means over different images: of h(x, y) h(z, w), and of h(x, y) h(x, z).
    apart = (rows.sum() ** 2 - 4 * (rows @ rows) + 2 * squares) / (n * (n - 1) * (n - 2) * (n - 3))
    shared = (rows @ rows - squares) / (n * (n - 1) * (n - 2))
    first, second = max(0.0, shared - apart), max(0.0, squares / (n * (n - 1)) - apart)

    def variance(number: int) -> float:
        return (4 * (number - 2) * first + 2 * second) / (number * (number - 1))

    whole = variance(num)
    of_subset = variance(size) + 4 / size * across.var() * (1 / size - 1 / others)
    return float((whole + (of_subset - whole) / KID_SUBSETS) ** 0.5)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KID's kernel of each pair, (N, M): (x.y / D + 1)^3 (Binkowski et al. 2018, section 4)."""
    return (a @ b.T / a.shape[1] + 1) ** 3
