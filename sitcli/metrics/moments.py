"""Means and covariances of feature vectors, summed in float64 and merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sitcli.errors import SitError

ROWS = 1024  # of a block: bounds memory, not results


def gaussian_of(moments: Moments) -> Gaussian:
    """Mean and unbiased covariance; needs two vectors."""
    if moments.num < 2:
        raise SitError(f"a covariance needs at least 2 images, there are {moments.num}")
    return Gaussian(moments.mean, moments.scatter / (moments.num - 1), moments.num)


def moments_of(gaussian: Gaussian) -> Moments:
    """The moments whose mean and covariance these are; their number must be known."""
    moments = Moments(len(gaussian.mean))
    moments.num, moments.mean = gaussian.num, gaussian.mean
    moments.scatter = gaussian.covariance * (gaussian.num - 1)
    return moments


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together; needs one."""
    total = Moments(len(parts[0].mean))
    for part in parts:
        total.merge(part)
    return total


class Gaussian(NamedTuple):
    """mean (D,) and covariance (D, D) float64; num: of how many images, None if unknown."""

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
        """Add vectors (B, D)."""
        if len(block) == 0:
            return
        block = np.asarray(block, np.float64)
        mean = block.mean(axis=0)
        centred = block - mean
        self._merge(len(block), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add all vectors that were added to `other`."""
        if other.num:
            self._merge(other.num, other.mean, other.scatter)

    def without(self, other: Moments) -> Moments:
        """The moments of the vectors that are not in `other`, all of whose vectors are in this."""
        rest = Moments(len(self.mean))
        rest.num = self.num - other.num
        rest.mean = self.mean + (self.mean - other.mean) * (other.num / rest.num)
        step = other.mean - rest.mean
        rest.scatter = self.scatter - other.scatter
        rest.scatter -= np.outer(step, step) * (rest.num * other.num / self.num)
        return rest

    def _merge(self, num: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.num + num
        step = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(step, step) * (self.num * num / total)
        self.mean += step * (num / total)
        self.num = total
