"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sitcli.errors import SitError
from sitcli.metrics.metric import Evidence, Measured, Real
from sitcli.metrics.nearest import Points, Space
from sitcli.metrics.subsamples import Parts

NEIGHBOURS = 3  # of precision and recall
DC_NEIGHBOURS = 5  # of density and coverage


def precision_recall(generated: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Improved precision and recall, k = 3, from features (M, D), (N, D).

    Precision is the share of generated images in a closed ball around a real one that reaches to
    its third nearest real neighbour; recall is the same with the sides exchanged. Kynkaanniemi et
    al. 2019, eqs. 1 and 2; ADM reports them on Inception's pool features. Needs 4 images on both
    sides.
    """
    fake, true = Points(generated), Points(real)
    space = Space(fake, true)
    shares = []
    for points, centres in ((fake, true), (true, fake)):
        radii = space.squared_radii(centres, NEIGHBOURS)
        hits = [i.any(axis=1) for i in space.inside(points, centres, radii, closed=True)]
        shares.append(float(np.concatenate(hits) @ points.number / points.number.sum()))
    return shares[0], shares[1]


class InBalls(NamedTuple):
    """Which generated images lie in which real image's ball.

    density: (M,), of each generated image; its mean is the metric. coverage: the metric. hits:
    (M, U / 8) uint8, a bit for each of the U different real images. number: (U,), how many real
    images each of these stands for.
    """

    density: np.ndarray
    coverage: float
    hits: np.ndarray
    number: np.ndarray

    def coverage_of(self, hits: Sequence[np.ndarray]) -> float:
        """The share of balls with an image in them; hits: (U / 8,) each, of some images."""
        covered = np.unpackbits(np.bitwise_or.reduce(hits), count=len(self.number))
        return float(covered @ self.number / self.number.sum())


def density_coverage(generated: np.ndarray, real: np.ndarray) -> InBalls:
    """Density and coverage, k = 5, from features (M, D), (N, D).

    Each real image has an open ball that reaches to its fifth nearest real neighbour. Density is
    the number of balls that an image lies in, divided by 5; coverage is the share of balls with an
    image in them. Equal distributions have a density of 1. Naeem et al. 2020, eqs. 3 and 4; the
    open ball follows the authors' figures. Needs 6 real images.
    """
    fake, true = Points(generated), Points(real)
    space = Space(fake, true)
    radii = space.squared_radii(true, DC_NEIGHBOURS)
    if not radii.any():
        raise SitError("density and coverage are undefined: the reference's images are all alike")
    counts, hits = [], []
    for inside in space.inside(fake, true, radii, closed=False):
        counts.append(inside @ true.number)
        hits.append(np.packbits(inside, axis=1))
    density = np.concatenate(counts)[fake.index] / DC_NEIGHBOURS
    found = InBalls(density, 0.0, np.concatenate(hits)[fake.index], true.number)
    return found._replace(coverage=found.coverage_of(found.hits))


def measure_precision_recall(e: Evidence) -> list[Measured]:
    """Precision and recall, and those of as many images of the reference among its others."""
    values = precision_recall(e.fake["pool"].features, e.real["pool"].features)
    own: list[Real | None] = [None, None]
    sides = e.real_sides("pool")
    if sides is not None and len(sides[0]) > NEIGHBOURS:
        own = [Real(value, tuple(map(len, sides))) for value in precision_recall(*sides)]
    recipe = {"neighbours": NEIGHBOURS, "distances": "float64"}
    num = len(e.fake["pool"].features)

    def error() -> float:
        # A share of independent images. Agresti and Coull 1998: two more of each kind, so that a
        # share of all is not certain.
        share = (values[0] * num + 2) / (num + 4)
        return float((share * (1 - share) / (num + 4)) ** 0.5)

    return [
        Measured("precision", values[0], own[0], recipe, error=error, limits=(0, 1)),
        Measured("recall", values[1], own[1], recipe),
    ]


def measure_density_coverage(e: Evidence) -> list[Measured]:
    """Density and coverage, and those of as many images of the reference among its others."""
    found = density_coverage(e.fake["pool"].features, e.real["pool"].features)
    own: list[Real | None] = [None, None]
    sides = e.real_sides("pool")
    if sides is not None and len(sides[1]) > DC_NEIGHBOURS:
        among = density_coverage(*sides)
        numbers = tuple(map(len, sides))
        own = [Real(float(among.density.mean()), numbers), Real(among.coverage, numbers)]
    recipe = {"neighbours": DC_NEIGHBOURS, "distances": "float64"}
    num = len(found.density)

    def parts() -> Parts:
        def gather(numbers: np.ndarray) -> np.ndarray:
            return np.bitwise_or.reduce(found.hits[numbers])

        return Parts(num, gather, found.coverage_of)

    def error() -> float:
        return float(found.density.std(ddof=1) / num**0.5)

    return [
        Measured("density", float(found.density.mean()), own[0], recipe, error=error),
        Measured("coverage", found.coverage, own[1], recipe, parts=parts, limits=(0, 1)),
    ]
