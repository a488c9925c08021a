"""Distances between two sets of feature vectors, and scores of one.

torch-fidelity supplies KID, Inception Score, precision and recall; ours are the Frechet distance,
density and coverage, the accumulator of moments and the bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from sitcli.errors import SitError

NEIGHBOURS = 3  # of precision and recall
DC_NEIGHBOURS = 5  # of density and coverage
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
ADM_SPLIT = 5000
ROWS = 1024  # of a block: bounds memory, not results


def gaussian_of(moments: Moments) -> Gaussian:
    """Mean and unbiased covariance; needs two vectors."""
    if moments.num < 2:
        raise SitError(f"a covariance needs at least 2 images, there are {moments.num}")
    return Gaussian(moments.mean, moments.scatter / (moments.num - 1), moments.num)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians, |m1-m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    With S = A A^T the last trace is the nuclear norm of A1^T A2: singular values keep 1e-16 of
    the largest where square roots of eigenvalues keep 1e-8, which matters when there are fewer
    images than features. Its error is below 1e-12 of tr(S1 + S2), measured against 60 digits,
    for full rank and for rank 1; what is below that is rounding. Dowson and Landau 1982; Heusel
    et al. 2017, eq. 6.
    """
    difference = a.mean - b.mean
    cross = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    total = np.trace(a.covariance) + np.trace(b.covariance) + difference @ difference
    # Rounding can leave a distance of zero slightly below it.
    return max(0.0, float(total - 2 * cross))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A (D, rank) with A A^T = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    keep = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, keep] * np.sqrt(values[keep])


def kernel_distance(a: np.ndarray, b: np.ndarray, *, seed: int) -> tuple[float, float]:
    """KID's mean and spread over 100 subsets of min(1000, N) from features (N, D) float32.

    Unbiased, so slightly negative for equal distributions. Binkowski et al. 2018. The subsets and
    the estimate are torch-fidelity's; the kernel is taken in float64, since a small difference of
    cubes is left: of features around 100, float32 would leave 1e5 where 0 is right.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    size = kid_subset_size(len(a), len(b))
    choose = np.random.RandomState(_numpy_seed(seed))
    estimates = []
    for _ in range(KID_SUBSETS):
        first = a[choose.choice(len(a), size, replace=False)].astype(np.float64)
        second = b[choose.choice(len(b), size, replace=False)].astype(np.float64)
        estimates.append(kernel_mmd(first, second, kid_kernel="poly"))
    return float(np.mean(estimates)), float(np.std(estimates))


def kid_subset_size(num_a: int, num_b: int) -> int:
    """Images in each of KID's subsets."""
    return min(KID_SUBSET_SIZE, num_a, num_b)


def precision_recall(generated: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Improved precision and recall, k = 3, from features (N, D) float32.

    Kynkaanniemi et al. 2019; on Inception's pool features, as ADM reports them. Needs 4 images on
    both sides.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    # Blocks of a thousand rows: two matrices of 1000 x N distances at a time.
    return calculate_precision_recall_part(
        torch.from_numpy(np.array(generated)), torch.from_numpy(np.array(real)), NEIGHBOURS, ROWS
    )


def density_coverage(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, float]:
    """Density of each generated image (M,), whose mean is the metric, and coverage.

    From features (M, D), (N, D). With the ball around each real image that reaches to its fifth
    nearest real neighbour, open as in the authors' figures: density counts the balls an image lies
    in, over 5; coverage is the share of balls with an image in them. Equal distributions have a
    density of 1. Naeem et al. 2020, eqs. 3 and 4. Needs 6 real images.
    """
    real_rows = torch.from_numpy(np.array(real, np.float64))
    radii = torch.cat([
        torch.cdist(rows, real_rows).kthvalue(DC_NEIGHBOURS + 1).values
        for rows in real_rows.split(ROWS)
    ])  # fmt: skip
    if not radii.any():
        raise SitError("density and coverage mean nothing: the reference's images are all alike")
    counts, covered = [], torch.zeros(len(real_rows), dtype=torch.bool)
    for rows in torch.from_numpy(np.array(generated, np.float64)).split(ROWS):
        inside = torch.cdist(rows, real_rows) < radii
        counts.append(inside.sum(1))
        covered |= inside.any(0)
    density = torch.cat(counts).double() / DC_NEIGHBOURS
    return density.numpy(), float(covered.double().mean())


def inception_score(
    logits: torch.Tensor, *, seed: int, ordered: bool, splits: int | None = None
) -> tuple[float, float, dict[str, int | bool]]:
    """Inception Score's mean and spread over its splits, and how it was split.

    splits None: from 10,000 images on as ADM, of 5,000 each; below, ten. In file order if that
    order is `ordered` by chance and the splits are ADM's size, else shuffled by the seed.
    Salimans et al. 2016.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    adm = len(logits) >= 2 * ADM_SPLIT
    if splits is None:
        splits = len(logits) // ADM_SPLIT if adm else max(1, min(10, len(logits) // 2))
    shuffle = not (ordered and adm and splits == len(logits) // ADM_SPLIT)
    result = isc_features_to_metric(logits, splits, shuffle, _numpy_seed(seed))
    recipe = {"splits": splits, "shuffled": shuffle}
    return result["inception_score_mean"], result["inception_score_std"], recipe


def _numpy_seed(seed: int) -> int:
    return seed % (1 << 32)


def bootstrap_frechet(
    features: np.ndarray, target: Gaussian, *, number: int, seed: int
) -> Iterator[float]:
    """The Frechet distance to `target` of `number` resamples of features (N, D), one by one.

    Resamples repeat images and so lie further away than the set itself: their spread is what to
    use, not their mean. Efron 1979.
    """
    center = features.mean(axis=0, dtype=np.float64)
    factor = _factor(target.covariance)
    for counts in _resamples(len(features), number, seed):
        num, mean = len(features), counts @ features / len(features) - center
        scatter = np.zeros((len(center), len(center)))
        for start in range(0, num, ROWS):
            block = features[start : start + ROWS] - center
            scatter += (block * counts[start : start + ROWS, None]).T @ block
        covariance = (scatter - num * np.outer(mean, mean)) / (num - 1)
        # Square roots of eigenvalues keep 8 digits, plenty for a spread, at a third of the time.
        values = np.linalg.eigvalsh(factor.T @ covariance @ factor)
        cross = np.sqrt(values.clip(min=0)).sum()
        difference = mean + center - target.mean
        total = np.trace(covariance) + np.trace(target.covariance) + difference @ difference
        yield float(total - 2 * cross)


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], float], *, number: int, seed: int
) -> Iterator[float]:
    """`statistic` of `number` resamples of `rows` (N, ...), one by one."""
    for counts in _resamples(len(rows), number, seed):
        yield statistic(rows[np.repeat(np.arange(len(rows)), counts)])


def _resamples(num: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `num` images is drawn, (num,), `number` times."""
    draw = np.random.default_rng([_numpy_seed(seed), num])
    for _ in range(number):
        yield np.bincount(draw.integers(num, size=num), minlength=num)


class Gaussian(NamedTuple):
    """mean (D,), covariance (D, D) float64, and of how many images (None if unknown)."""

    mean: np.ndarray
    covariance: np.ndarray
    num: int | None


class Moments:
    """Mean and scatter matrix of vectors that come in blocks, in float64.

    Blocks are centred before they are merged (Chan, Golub and LeVeque 1979), so that a large
    common offset costs no digits.
    """

    def __init__(self, width: int) -> None:
        self.num = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    def add(self, block: np.ndarray) -> None:
        """Take in vectors (B, D)."""
        if len(block) == 0:
            return
        block = np.asarray(block, np.float64)
        mean = block.mean(axis=0)
        centred = block - mean
        self._merge(len(block), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Take in everything `other` has seen."""
        if other.num:
            self._merge(other.num, other.mean, other.scatter)

    def _merge(self, num: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.num + num
        step = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(step, step) * (self.num * num / total)
        self.mean += step * (num / total)
        self.num = total
