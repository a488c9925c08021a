"""Resamples and their spread."""

import numpy as np
import pytest

from sitcli.metrics.bootstrap import bootstrap
from sitcli.metrics.frechet import bootstrap_frechet, frechet_distance
from sitcli.metrics.moments import Gaussian, gaussian_of
from tests.tiny import moments


def test_the_bootstraps_spread_is_that_of_new_samples():
    """Catches: resamples of the wrong size, or without replacement, whose spread is another than
    the one fresh samples have: here the distance of 300 draws of a known Gaussian, drawn 200
    times."""
    rng = np.random.default_rng(3)
    target = Gaussian(np.zeros(4), np.eye(4), None)

    def draw():
        return (rng.normal(size=(300, 4)) * 1.3 + 0.5).astype(np.float32)

    fresh = np.std([frechet_distance(gaussian_of(moments(draw())), target) for _ in range(200)])
    spreads = [np.std(list(bootstrap_frechet(draw(), target, number=60, seed=i))) for i in range(5)]
    assert np.mean(spreads) == pytest.approx(fresh, rel=0.2)


def test_resamples_give_the_distance_of_repeated_images():
    """Catches: moments of counts that differ from those of the images written out."""
    features = np.random.default_rng(4).normal(size=(50, 6)).astype(np.float32)
    target = Gaussian(np.ones(6), np.diag(np.arange(1.0, 7.0)), None)

    def distance(rows):
        return frechet_distance(gaussian_of(moments(rows)), target)

    quick = list(bootstrap_frechet(features, target, number=4, seed=9))
    slow = list(bootstrap(features, distance, number=4, seed=9))
    np.testing.assert_allclose(quick, slow, rtol=1e-6)
    assert len(set(quick)) == 4
