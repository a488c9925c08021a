"""The inception score in closed form, and its splits."""

import numpy as np
import pytest
import torch

from sitcli.metrics.inception_score import inception_score


def defined(logits, sizes):
    """The mean over consecutive parts of exp(E KL(p(y|x) || p(y))), in float64 (Salimans 2016)."""
    exponents = np.exp(logits.numpy().astype(np.float64))
    p = exponents / exponents.sum(axis=1, keepdims=True)
    scores, start = [], 0
    for size in sizes:
        part = p[start : start + size]
        start += size
        divergences = (part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1)
        scores.append(np.exp(divergences.mean()))
    return np.mean(scores)


def random_logits(num, classes=6):
    return torch.randn(num, classes, generator=torch.Generator().manual_seed(num)) * 3


@pytest.mark.parametrize(
    ("num", "sizes"),
    [
        (300, [300]),
        (4999, [4999]),
        (5001, [5000, 1]),
        (7500, [5000, 2500]),
        (10_000, [5000, 5000]),
        (12_003, [5000, 5000, 2003]),
    ],
)
def test_without_a_number_of_splits_they_are_adms(num, sizes):
    """Catches: equal parts where ADM's evaluator steps through the file in 5,000s and counts the
    rest as one part more (guided-diffusion, evaluations/evaluator.py, compute_inception_score)."""
    logits = random_logits(num)
    score, spread, recipe = inception_score(logits, seed=0, random_order=True)
    # A mean of some thousand terms rounds by less than 1e-12 of itself.
    assert score == pytest.approx(defined(logits, sizes), rel=1e-12)
    expected = dict(splits=len(sizes), shuffled=False, largest_split=max(sizes))
    assert recipe == expected | dict(smallest_split=min(sizes))
    assert (spread is None) == (len(sizes) == 1)


@pytest.mark.parametrize(("num", "splits"), [(120, 1), (120, 6), (127, 10), (10_000, 2)])
@pytest.mark.parametrize("random_order", [True, False])
def test_a_number_of_splits_is_torch_fidelitys(num, splits, random_order):
    """Catches: --isc-splits that does nothing, or splits and shuffles in its own way."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = random_logits(num)
    score, spread, recipe = inception_score(
        logits, seed=5, random_order=random_order, splits=splits
    )
    theirs = isc_features_to_metric(logits, splits, True, 5)
    assert score == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert (spread or 0.0) == pytest.approx(theirs["inception_score_std"], rel=1e-9)
    assert (recipe["splits"], recipe["shuffled"]) == (splits, True)


def test_parts_of_a_sorted_file_see_all_classes():
    """Catches: the order of a folder sorted by class, in which a part of 5,000 has one class: of
    certain and balanced classes the score is their number."""
    logits = torch.eye(4).repeat_interleave(3000, dim=0) * 100
    score, _, recipe = inception_score(logits, seed=0, random_order=False)
    assert recipe["shuffled"]
    # Of 5,000 drawn from 12,000, the share of a class is off 1/4 by 0.005: the score by 1e-3.
    assert score == pytest.approx(4.0, abs=0.01)


def test_classes_that_cannot_be_add_nothing():
    """Catches: 0 log 0 as nan, for logits so far apart that a probability is 0 in float64."""
    logits = torch.tensor([[0.0, -2000.0, -3000.0], [-2000.0, 0.0, -3000.0]])
    assert inception_score(logits, seed=0, random_order=True)[0] == pytest.approx(2.0, rel=1e-12)
