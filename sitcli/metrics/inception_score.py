"""The Inception Score (Salimans et al. 2016), in ADM's parts of 5,000 or in equal parts."""

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
) -> tuple[float, float | None, dict[str, int | bool]]:
    """The Inception Score's mean and spread over its splits, and how the images were split.

    logits: (N, classes). splits None is ADM's way: parts of 5,000 in file order, of which the last
    holds the rest, and each counts the same, however few it holds (guided-diffusion,
    evaluations/evaluator.py). The seed shuffles the images first if the order of the file is not
    random, since a part must see all classes. A number of splits is torch-fidelity's way: the seed
    shuffles, and the parts are equal to within one image. The spread is None for a single part.
    Computed in float64, with log-softmax, so that a probability of 0 adds 0. Salimans et al. 2016.
    """
    num = len(logits)
    shuffle = splits is not None or not (random_order or num <= ADM_SPLIT)
    if splits is None:
        ends = [*range(ADM_SPLIT, num, ADM_SPLIT), num]
    else:
        ends = [(i + 1) * num // splits for i in range(splits)]
    if shuffle:
        logits = logits[np.random.RandomState(numpy_seed(seed)).permutation(num)]
    scores = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        log_p = logits[start:end].double().log_softmax(dim=1)
        p = log_p.exp()
        divergence = p * (log_p - p.mean(dim=0).log())
        divergence = torch.where(p == 0, 0.0, divergence)
        scores.append(float(divergence.sum(dim=1).mean().exp()))
    recipe: dict[str, int | bool] = {"splits": len(ends), "shuffled": shuffle}
    sizes = np.diff([0, *ends])
    recipe |= {"largest_split": int(sizes.max()), "smallest_split": int(sizes.min())}
    return float(np.mean(scores)), float(np.std(scores)) if len(ends) > 1 else None, recipe


def measure_inception_score(e: Evidence) -> list[Measured]:
    """The Inception Score; its floor is the mean score of the two halves of the reference."""

    def score(
        logits: torch.Tensor, *, random_order: bool
    ) -> tuple[float, float | None, dict[str, Any]]:
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
