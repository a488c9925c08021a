"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from sitcli.errors import SitError
from sitcli.metrics.bootstrap import bootstrap
from sitcli.metrics.metric import Evidence, Measured
from sitcli.metrics.moments import ROWS

NEIGHBOURS = 3  # of precision and recall
DC_NEIGHBOURS = 5  # of density and coverage


def precision_recall(generated: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Improved precision and recall, k = 3, from features (N, D) float32.

    Kynkaanniemi et al. 2019; ADM reports them on Inception's pool features. Needs 4 images on
    both sides.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    # Blocks of a thousand rows: two matrices of 1000 x N distances at a time.
    return calculate_precision_recall_part(
        torch.from_numpy(np.array(generated)), torch.from_numpy(np.array(real)), NEIGHBOURS, ROWS
    )


def density_coverage(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, float]:
    """Density of each generated image (M,), whose mean is the metric, and coverage.

    generated, real: features (M, D), (N, D). Each real image has an open ball that reaches to its
    fifth nearest real neighbour. Density is the number of balls that an image lies in, divided by
    5; coverage is the share of balls with an image in them. Equal distributions have a density
    of 1. Naeem et al. 2020, eqs. 3 and 4; the open ball follows the authors' figures. Needs 6 real
    images.
    """
    real_rows = torch.from_numpy(np.array(real, np.float64))
    radii = torch.cat([
        torch.cdist(rows, real_rows).kthvalue(DC_NEIGHBOURS + 1).values
        for rows in real_rows.split(ROWS)
    ])  # fmt: skip
    if not radii.any():
        raise SitError("density and coverage are undefined: the reference's images are all alike")
    counts, covered = [], torch.zeros(len(real_rows), dtype=torch.bool)
    for rows in torch.from_numpy(np.array(generated, np.float64)).split(ROWS):
        inside = torch.cdist(rows, real_rows) < radii
        counts.append(inside.sum(1))
        covered |= inside.any(0)
    density = torch.cat(counts).double() / DC_NEIGHBOURS
    return density.numpy(), float(covered.double().mean())


def measure_precision_recall(e: Evidence) -> list[Measured]:
    """Precision and recall; their floors are those between the halves of the reference."""
    values = precision_recall(e.fake["pool"].features, e.real["pool"].features)
    first, second = e.real["pool"].halves()
    floors = precision_recall(first, second) if len(first) > NEIGHBOURS else (None, None)
    recipe = {"neighbours": NEIGHBOURS, "distances": "float32"}
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
