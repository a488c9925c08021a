"""What a metric is given."""

from __future__ import annotations

import numpy as np
import pytest

from sitcli.metrics.metric import Collected, Evidence


@pytest.mark.parametrize(("number", "known"), [(2, True), (3, True), (4, False)])
def test_real_images_stand_in_for_as_many_samples(number: int, known: bool) -> None:
    """Catches: sides that share an image or leave one out, and fewer others than stand-ins."""
    features = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    real = {"pool": Collected(features=features, parts=np.zeros(6), moments=[])}
    chosen = np.isin(np.arange(6), [5, 0, 2, 1][:number])
    evidence = Evidence(
        fake={}, real=real, targets={}, stand_ins=chosen, logits=None, seed=0, random_order=True,
        splits=None,
    )  # fmt: skip
    sides = evidence.real_sides("pool")
    assert (sides is not None) == known
    if sides is not None:
        assert np.array_equal(sides[0], features[chosen])
        assert np.array_equal(sides[1], features[~chosen])
