"""The inception score in closed form, and its splits."""

import pytest
import torch

from sitcli.metrics.inception_score import inception_score


def test_inception_score_of_certain_and_balanced_classes_is_their_number():
    """Catches: splits of sorted files that do not see all classes, and a wrong number of them."""
    logits = torch.eye(4).repeat_interleave(250, dim=0) * 100
    score, spread, recipe = inception_score(logits, seed=0, random_order=False)
    assert recipe == {"splits": 10, "shuffled": True}
    assert score == pytest.approx(4.0, abs=0.1)
    assert spread < 0.1
    assert inception_score(torch.randn(15_000, 3), seed=0, random_order=True)[2] == {
        "splits": 3,
        "shuffled": False,
    }


def test_inception_score_takes_the_splits_it_is_told():
    """Catches: --isc-splits that does nothing; one split of all is the score without a spread."""
    logits = torch.randn(120, 5, generator=torch.Generator().manual_seed(0)) * 3
    one, none, recipe = inception_score(logits, seed=0, random_order=False, splits=1)
    p = logits.double().softmax(1)
    expected = float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp())
    assert one == pytest.approx(expected, rel=1e-6)
    assert (none, recipe["splits"]) == (0.0, 1)
    assert inception_score(logits, seed=0, random_order=False, splits=6)[1] > 0
