"""The Inception Score (Salimans et al. 2016), in ADM's parts of 5,000 or in equal parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sitcli.metrics.metric import Evidence, Measured, Real
from sitcli.metrics.subsamples import Parts, numpy_seed

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
        scores.append(float(_divergences(logits[start:end]).mean().exp()))
    recipe: dict[str, int | bool] = {"splits": len(ends), "shuffled": shuffle}
    sizes = np.diff([0, *ends])
    recipe |= {"largest_split": int(sizes.max()), "smallest_split": int(sizes.min())}
    return float(np.mean(scores)), float(np.std(scores)) if len(ends) > 1 else None, recipe


def measure_inception_score(e: Evidence) -> list[Measured]:
    """The Inception Score, and that of as many images of the reference."""

    def logits(features: np.ndarray) -> torch.Tensor:
        return e.logits(torch.from_numpy(np.array(features)))

    fake = logits(e.fake["pool"].features)
    value, spread, recipe = inception_score(
        fake, seed=e.seed, random_order=e.random_order, splits=e.splits
    )
    real = None
    if e.stand_ins is not None and "pool" in e.real:
        chosen = logits(e.real["pool"].features[e.stand_ins])
        score = inception_score(chosen, seed=e.seed, random_order=False, splits=e.splits)[0]
        real = Real(score, (len(chosen),))

    def figure(parts: Sequence[np.ndarray]) -> float:
        numbers = np.concatenate(parts)  # in an order of chance
        splits = None if e.splits is None else min(e.splits, len(numbers) // 2)
        return inception_score(fake[numbers], seed=e.seed, random_order=True, splits=splits)[0]

    def parts() -> Parts:
        return Parts(len(fake), lambda numbers: numbers, figure, score_influence(fake))

    return [Measured("IS", value, real, recipe, spread=spread, parts=parts)]


def score_influence(logits: torch.Tensor) -> np.ndarray:
    """How much each image moves the Inception Score of one part, to first order, (N,).

    With q the mean of p(y|x), the derivative of E KL(p(y|x) || q) along an image is its own
    KL(p(y|x) || q) less the mean; that of the score is the score times as much.
    """
    divergences = _divergences(logits).numpy()
    return float(np.exp(divergences.mean())) * (divergences - divergences.mean())


def _divergences(logits: torch.Tensor) -> torch.Tensor:
    """KL(p(y|x) || q) of each image, q the mean of p(y|x), (N,) float64."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - p.mean(dim=0).log())).sum(dim=1)
