"""What a metric is given."""

from __future__ import annotations

import numpy as np

from sitcli.metrics.metric import Collected


def test_halves_are_the_parts() -> None:
    """Catches: halves that share an image, leave one out, or are those of a sorted list."""
    features = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    collected = Collected(features=features, parts=np.array([1, 0, 0, 1, 0]), moments=[])
    first, second = collected.halves()
    assert np.array_equal(first, features[[1, 2, 4]])
    assert np.array_equal(second, features[[0, 3]])
