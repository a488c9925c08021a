"""The input and the output of a metric, and the row of the table that describes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from sitcli.metrics.moments import Gaussian, Moments
from sitcli.metrics.subsamples import Parts


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The features of one layer over a set of images.

    features: (N, D) float32, None if they are too many to keep. parts: (N,), the part of each
    image, from 0. moments: those of each part, [] if they were not asked for.
    """

    features: np.ndarray | None
    parts: np.ndarray
    moments: list[Moments]


class Real(NamedTuple):
    """The figure of as many images of the reference as there are samples, in their place.

    numbers: of these images, and of the reference's others that they were compared with; the first
    alone if the figure compares with nothing.
    """

    value: float
    numbers: tuple[int, ...]


class Target(NamedTuple):
    """The Gaussian a Frechet distance is taken to, its origin in words, and the real figure."""

    gaussian: Gaussian
    origin: str
    real: Real | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The input of the metrics of one sample set; mappings are by the layers' names in METRICS.

    stand_ins: (R,) bool, the images of the reference that stand in for the samples, as many of them
    and drawn at random; None if the reference has fewer. logits: pool features -> class logits,
    None without class probabilities. random_order: whether neighbouring samples are independent.
    splits: number of the Inception Score's splits, or None.
    """

    fake: Mapping[str, Collected]
    real: Mapping[str, Collected]
    targets: Mapping[str, Target]
    stand_ins: np.ndarray | None
    logits: Callable[[torch.Tensor], torch.Tensor] | None
    seed: int
    random_order: bool
    splits: int | None

    def real_sides(self, layer: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Features of the stand-ins, and of the reference's others; None if these are fewer.

        With fewer, the figure of the stand-ins would say more of the others' number than of them.
        """
        if self.stand_ins is None or 2 * self.stand_ins.sum() > len(self.stand_ins):
            return None
        features = self.real[layer].features
        return features[self.stand_ins], features[~self.stand_ins]


class Measured(NamedTuple):
    """A figure of a metric.

    real: the same figure of real images, None if unknown. recipe: the parameters of the
    measurement. spread: its standard deviation over subsets or splits, or None. parts: makes what
    its standard error is estimated with; error: computes that standard error where a formula gives
    it. Both are None if neither does. limits: no value lies outside them.
    """

    name: str
    value: float
    real: Real | None
    recipe: dict[str, Any]
    spread: float | None = None
    parts: Callable[[], Parts] | None = None
    error: Callable[[], float] | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)


class Metric(NamedTuple):
    """A row of METRICS.

    layer: pool or spatial of --features, or the extractor that the metric brings itself;
    own_features: the name of that extractor; frechet: whether mean and covariance suffice; least:
    the number of images it needs on each side; compares: whether it needs a reference; needs: the
    output of InceptionV3 that other --features lack, in words; in_all: whether --all computes it;
    distance: whether 0 is the best value, so that real images give a floor; suggested: whether the
    suggested next command adds it if the user did not ask for it.
    """

    layer: str
    measure: Callable[[Evidence], list[Measured]]
    frechet: bool = False
    least: int = 2
    compares: bool = True
    own_features: str = ""
    needs: str = ""
    in_all: bool = True
    distance: bool = True
    suggested: bool = False
