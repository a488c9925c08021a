"""The Inception Score (Salimans et al. 2016), in ADM's splits."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from sitcli.metrics.bootstrap import bootstrap, numpy_seed
from sitcli.metrics.metric import Evidence, Measured

ADM_SPLIT = 5000


def inception_score(
    logits: torch.Tensor, *, seed: int, random_order: bool, splits: int | None = None
) -> tuple[float, float, dict[str, int | bool]]:
    """The Inception Score's mean and spread over its splits, and how the images were split.

    splits: None is ADM's splits of 5,000 from 10,000 images on, and ten splits below. The splits
    follow the file's order if that is random and they have ADM's size; otherwise the seed shuffles
    the images. Salimans et al. 2016.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    adm = len(logits) >= 2 * ADM_SPLIT
    if splits is None:
        splits = len(logits) // ADM_SPLIT if adm else max(1, min(10, len(logits) // 2))
    shuffle = not (random_order and adm and splits == len(logits) // ADM_SPLIT)
    result = isc_features_to_metric(logits, splits, shuffle, numpy_seed(seed))
    recipe = {"splits": splits, "shuffled": shuffle}
    return result["inception_score_mean"], result["inception_score_std"], recipe


def measure_inception_score(e: Evidence) -> list[Measured]:
    """The Inception Score; its floor is the mean score of the two halves of the reference."""

    def score(logits: torch.Tensor, *, random_order: bool) -> tuple[float, float, dict[str, Any]]:
        return inception_score(logits, seed=e.seed, random_order=random_order, splits=e.splits)

    def logits(features: np.ndarray) -> torch.Tensor:
        return e.logits(torch.from_numpy(np.array(features)))

    fake = logits(e.fake["pool"].features)
    value, spread, recipe = score(fake, random_order=e.random_order)
    floor = None
    if "pool" in e.real and len(e.real["pool"].parts) >= 2 * max(2, e.splits or 0):
        halves = [score(logits(half), random_order=False)[0] for half in e.real["pool"].halves()]
        floor = float(np.mean(halves))

    def again(rows: np.ndarray) -> float:
        return score(torch.from_numpy(rows), random_order=False)[0]

    resamples = partial(bootstrap, fake.numpy(), again)
    return [Measured("IS", value, floor, recipe, spread=spread, resamples=resamples)]
