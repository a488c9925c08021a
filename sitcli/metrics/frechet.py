"""The Frechet distance between two Gaussians (FID's formula; Heusel et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sitcli.metrics.metric import Evidence, Measured
from sitcli.metrics.moments import ROWS, Gaussian, gaussian_of
from sitcli.metrics.subsamples import Parts


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


class _Part(NamedTuple):
    """Sums over n images: of x of `FrechetParts`, of its squares, and of the products of y.

    products: y as it is, (n, rank), or the sum of its products (rank, rank).
    """

    num: int
    total: np.ndarray
    squares: float
    products: np.ndarray


class FrechetParts:
    """The Frechet distance of parts of a sample set to `target`, for its standard error.

    features: (N, D). Images are taken as x, their features less the mean of all, and as y = F^T x
    with F F^T the target's covariance: the last trace of the distance is the sum of the roots of
    the eigenvalues of y's covariance. These roots keep 8 digits, plenty for a spread.
    """

    def __init__(self, features: np.ndarray, target: Gaussian) -> None:
        self.features, self.target = features, target
        self.factor = _factor(target.covariance)
        self.center = features.mean(axis=0, dtype=np.float64)
        self.y = np.empty((len(features), self.factor.shape[1]), np.float32)
        for start in range(0, len(features), ROWS):
            self.y[start : start + ROWS] = self._x(slice(start, start + ROWS)) @ self.factor
        # Of a half with fewer images than this, products of images make the smaller matrix.
        self.few = len(features) // 2 < self.y.shape[1]

    def gather(self, numbers: np.ndarray) -> _Part:
        """The sums over the images with these numbers (n,)."""
        width = self.y.shape[1]
        total, squares = np.zeros(len(self.center)), 0.0
        products = self.y[numbers] if self.few else np.zeros((width, width))
        for start in range(0, len(numbers), ROWS):
            some = numbers[start : start + ROWS]
            x = self._x(some)
            total += x.sum(axis=0)
            squares += float(np.square(x).sum())
            if not self.few:
                y = self.y[some].astype(np.float64)
                products += y.T @ y
        return _Part(len(numbers), total, squares, products)

    def figure(self, parts: Sequence[_Part]) -> float:
        """The distance of the images of these parts together."""
        num = sum(part.num for part in parts)
        mean = np.sum([part.total for part in parts], axis=0) / num
        trace = (sum(part.squares for part in parts) - num * mean @ mean) / (num - 1)
        y_mean = mean @ self.factor
        if self.few:
            y = np.concatenate([part.products for part in parts]) - y_mean
            scatter = y @ y.T
        else:
            products = np.sum([part.products for part in parts], axis=0)
            scatter = products - num * np.outer(y_mean, y_mean)
        cross = np.sqrt(np.linalg.eigvalsh(scatter).clip(min=0) / (num - 1)).sum()
        shift = mean + self.center - self.target.mean
        return float(shift @ shift + trace + np.trace(self.target.covariance) - 2 * cross)

    def influence(self) -> np.ndarray:
        """How much each image moves the distance, to first order, (N,).

        2 x.(m - m_r) + |x|^2 - y^T C^(-1/2) y less its mean, C the covariance of y. The first two
        terms are the derivatives of the shift and of the trace, the last that of 2 tr C^(1/2).
        """
        num = len(self.features)
        shift = self.center - self.target.mean
        moved = np.empty(num)
        for start in range(0, num, ROWS):
            x = self._x(slice(start, start + ROWS))
            moved[start : start + ROWS] = 2 * x @ shift + np.square(x).sum(axis=1)
        y = self.y.astype(np.float64)
        few = num < y.shape[1]
        values, vectors = np.linalg.eigh((y @ y.T if few else y.T @ y) / (num - 1))
        keep = values > values[-1] * 1e-9  # below it is the rounding of float32
        roots, vectors = np.sqrt(values[keep]), vectors[:, keep]
        if few:
            moved -= (num - 1) * np.square(vectors) @ roots
        else:
            moved -= np.square(y @ vectors) @ (1 / roots)
        return moved - moved.mean()

    def _x(self, which: slice | np.ndarray) -> np.ndarray:
        return self.features[which] - self.center


def measure_frechet(e: Evidence, *, name: str, layer: str) -> list[Measured]:
    """The Frechet distance of a layer's features to their target, called `name`."""
    fake, target = e.fake[layer], e.targets[layer]
    value = frechet_distance(gaussian_of(fake.moments[0]), target.gaussian)
    recipe = {"statistics": target.origin, "num_reference": target.gaussian.num}

    def parts() -> Parts:
        work = FrechetParts(fake.features, target.gaussian)
        return Parts(len(fake.features), work.gather, work.figure, work.influence())

    return [Measured(name, value, target.real, recipe, parts=parts)]
