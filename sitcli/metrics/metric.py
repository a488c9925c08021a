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
    """features (N, D) float32, None where there are too many to keep; parts (N,); the moments of
    each part, if they were asked for."""

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

    random_order: whether neighbouring samples are independent; splits: of the Inception Score.
    """

    fake: Mapping[str, Collected]
    real: Mapping[str, Collected]
    targets: Mapping[str, Target]
    logits: Callable[[torch.Tensor], torch.Tensor] | None
    seed: int
    random_order: bool
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
    """A row of METRICS.

    layer: pool or spatial of --features, or the extractor that the metric brings itself;
    own_features: the name of that extractor; frechet: mean and covariance suffice; least: images it
    needs a side; compares: with a reference; needs: what no other --features than InceptionV3 give
    it, for people; in_all: whether --all computes it; floor_is_ceiling: whether more is better, so
    that two halves of the reference are the best there is; suggested: whether the next command,
    where it was not asked for, names it.
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
