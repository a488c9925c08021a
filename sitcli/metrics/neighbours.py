"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

from functools import partial

import numpy as np

from sitcli.errors import SitError
from sitcli.metrics.bootstrap import bootstrap
from sitcli.metrics.metric import Evidence, Measured
from sitcli.metrics.nearest import Points, Space

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


def density_coverage(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, float]:
    """Density of each generated image (M,), whose mean is the metric, and coverage.

    generated, real: features (M, D), (N, D). Each real image has an open ball that reaches to its
    fifth nearest real neighbour. Density is the number of balls that an image lies in, divided by
    5; coverage is the share of balls with an image in them. Equal distributions have a density
    of 1. Naeem et al. 2020, eqs. 3 and 4; the open ball follows the authors' figures. Needs 6 real
    images.
    """
    fake, true = Points(generated), Points(real)
    space = Space(fake, true)
    radii = space.squared_radii(true, DC_NEIGHBOURS)
    if not radii.any():
        raise SitError("density and coverage are undefined: the reference's images are all alike")
    counts, covered = [], np.zeros(len(true.rows), bool)
    for inside in space.inside(fake, true, radii, closed=False):
        counts.append(inside @ true.number)
        covered |= inside.any(axis=0)
    density = np.concatenate(counts)[fake.index] / DC_NEIGHBOURS
    return density, float(covered @ true.number / true.number.sum())


def measure_precision_recall(e: Evidence) -> list[Measured]:
    """Precision and recall; their floors are those between the halves of the reference."""
    values = precision_recall(e.fake["pool"].features, e.real["pool"].features)
    first, second = e.real["pool"].halves()
    floors = precision_recall(first, second) if len(first) > NEIGHBOURS else (None, None)
    recipe = {"neighbours": NEIGHBOURS, "distances": "float64"}
    return [
        Measured(name, value, floor, recipe)
        for name, value, floor in zip(("precision", "recall"), values, floors, strict=True)
    ]


def measure_density_coverage(e: Evidence) -> list[Measured]:
    """Density and coverage; their floors are those between the halves of the reference."""
    density, coverage = density_coverage(e.fake["pool"].features, e.real["pool"].features)
    first, second = e.real["pool"].halves()
    floors: tuple[float | None, float | None] = (None, None)
    if len(second) > DC_NEIGHBOURS:
        halves = density_coverage(first, second)
        floors = float(halves[0].mean()), halves[1]
    recipe = {"neighbours": DC_NEIGHBOURS, "distances": "float64"}
    resamples = partial(bootstrap, density, lambda rows: float(rows.mean()))
    return [
        Measured("density", float(density.mean()), floors[0], recipe, resamples=resamples),
        Measured("coverage", coverage, floors[1], recipe),
    ]
