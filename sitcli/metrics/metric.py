"""The input and the output of a metric, and the row of the table that describes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from sitcli.metrics.moments import Gaussian, Moments


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The features of one layer over a set of images.

    features: (N, D) float32, None if they are too many to keep. parts: (N,), the part of each
    image, 0 or 1. moments: those of each part, [] if they were not asked for.
    """

    features: np.ndarray | None
    parts: np.ndarray
    moments: list[Moments]

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Features of part 0 and of part 1."""
        return self.features[self.parts == 0], self.features[self.parts == 1]


class Target(NamedTuple):
    """The Gaussian a Frechet distance is taken to, its origin in words, and the floor if known."""

    gaussian: Gaussian
    origin: str
    floor: float | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The input of the metrics of one sample set; mappings are by the layers' names in METRICS.

    logits: pool features -> class logits, None without class probabilities. random_order: whether
    neighbouring samples are independent. splits: number of the Inception Score's splits, or None.
    """

    fake: Mapping[str, Collected]
    real: Mapping[str, Collected]
    targets: Mapping[str, Target]
    logits: Callable[[torch.Tensor], torch.Tensor] | None
    seed: int
    random_order: bool
    splits: int | None


class Measured(NamedTuple):
    """A figure of a metric.

    floor: the same figure for the two halves of the reference, None if unknown. recipe: the
    parameters of the measurement. spread: its standard deviation over subsets or splits, or None.
    resamples: (number=, seed=) -> the figures of bootstrap resamples of the samples, None if
    repeated images would change the figure.
    """

    name: str
    value: float
    floor: float | None
    recipe: dict[str, Any]
    spread: float | None = None
    resamples: Callable[..., Iterator[float]] | None = None


class Metric(NamedTuple):
    """A row of METRICS.

    layer: pool or spatial of --features, or the extractor that the metric brings itself;
    own_features: the name of that extractor; frechet: whether mean and covariance suffice; least:
    the number of images it needs on each side; compares: whether it needs a reference; needs: the
    output of InceptionV3 that other --features lack, in words; in_all: whether --all computes it;
    floor_is_ceiling: whether larger is better, so that the halves of the reference give the best
    value; suggested: whether the suggested next command adds it if the user did not ask for it.
    """

    layer: str
    measure: Callable[[Evidence], list[Measured]]
    frechet: bool = False
    least: int = 2
    compares: bool = True
    own_features: str = ""
    needs: str = ""
    in_all: bool = True
    floor_is_ceiling: bool = False
    suggested: bool = False
