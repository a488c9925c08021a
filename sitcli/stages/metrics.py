"""The metrics `sit evaluate` knows: a row each, with the features it needs and how it is taken.

To add one, add a row to METRICS and a flag of its name to EvaluateSettings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from sitcli.io.distances import (
    DC_NEIGHBOURS,
    KID_SUBSETS,
    NEIGHBOURS,
    Gaussian,
    bootstrap,
    bootstrap_frechet,
    density_coverage,
    frechet_distance,
    gaussian_of,
    inception_score,
    kernel_distance,
    kid_subset_size,
    precision_recall,
)
from sitcli.io.extraction import Collected


def _frechet(e: Evidence, *, name: str, layer: str) -> list[Measured]:
    fake, target = e.fake[layer], e.targets[layer]
    value = frechet_distance(gaussian_of(fake.moments[0]), target.gaussian)
    recipe = {"statistics": target.origin, "num_reference": target.gaussian.num}
    resamples = partial(bootstrap_frechet, fake.features, target.gaussian)
    return [Measured(name, value, target.floor, recipe, resamples=resamples)]


def _isc(e: Evidence) -> list[Measured]:
    def score(logits: torch.Tensor, *, ordered: bool) -> tuple[float, float, dict[str, Any]]:
        return inception_score(logits, seed=e.seed, ordered=ordered, splits=e.splits)

    def logits(features: np.ndarray) -> torch.Tensor:
        return e.logits(torch.from_numpy(np.array(features)))

    fake = logits(e.fake["pool"].features)
    value, spread, recipe = score(fake, ordered=e.ordered)
    floor = None
    if "pool" in e.real and len(e.real["pool"].parts) >= 2 * max(2, e.splits or 0):
        halves = [score(logits(half), ordered=False)[0] for half in e.real["pool"].halves()]
        floor = float(np.mean(halves))

    def again(rows: np.ndarray) -> float:
        return score(torch.from_numpy(rows), ordered=False)[0]

    resamples = partial(bootstrap, fake.numpy(), again)
    return [Measured("IS", value, floor, recipe, spread=spread, resamples=resamples)]


def _kid(e: Evidence) -> list[Measured]:
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


def _prc(e: Evidence) -> list[Measured]:
    values = precision_recall(e.fake["pool"].features, e.real["pool"].features)
    first, second = e.real["pool"].halves()
    floors = precision_recall(first, second) if len(first) > NEIGHBOURS else (None, None)
    recipe = {"neighbours": NEIGHBOURS, "distances": "float32"}
    return [
        Measured(name, value, floor, recipe)
        for name, value, floor in zip(("precision", "recall"), values, floors, strict=True)
    ]


def _dc(e: Evidence) -> list[Measured]:
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


class Target(NamedTuple):
    """What a Frechet distance is taken to: a Gaussian, where it is from, and the floor if known."""

    gaussian: Gaussian
    origin: str
    floor: float | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the metrics of one sample set are computed from, by the layers' names in METRICS.

    ordered: whether the samples' order is one of chance; splits: of the Inception Score.
    """

    fake: Mapping[str, Collected]
    real: Mapping[str, Collected]
    targets: Mapping[str, Target]
    logits: Callable[[torch.Tensor], torch.Tensor] | None
    seed: int
    ordered: bool
    splits: int | None


class Measured(NamedTuple):
    """A figure; spread: its standard deviation over subsets or splits, where it has one.

    resamples: (number=, seed=) -> the figure for bootstrap resamples of the samples, None where
    repeated images would change what is measured.
    """

    name: str
    value: float
    floor: float | None
    recipe: dict[str, Any]
    spread: float | None = None
    resamples: Callable[..., Iterator[float]] | None = None


class Metric(NamedTuple):
    """layer: pool or spatial of --features, or dinov2; frechet: mean and covariance suffice;
    least: images it needs a side; compares: with a reference."""

    layer: str
    measure: Callable[[Evidence], list[Measured]]
    frechet: bool = False
    least: int = 2
    compares: bool = True


METRICS: dict[str, Metric] = {
    "fid": Metric("pool", partial(_frechet, name="FID", layer="pool"), frechet=True),
    "sfid": Metric("spatial", partial(_frechet, name="sFID", layer="spatial"), frechet=True),
    "isc": Metric("pool", _isc, compares=False),
    "kid": Metric("pool", _kid),
    "prc": Metric("pool", _prc, least=NEIGHBOURS + 1),
    "dc": Metric("pool", _dc, least=DC_NEIGHBOURS + 1),
    "fdd": Metric("dinov2", partial(_frechet, name="FID", layer="dinov2"), frechet=True),
}
