"""Means and covariances, added up block by block."""

import numpy as np
import pytest

from sitcli.errors import SitError
from sitcli.metrics.moments import Moments, gaussian_of, merged, moments_of
from tests.tiny import moments


def test_blocks_give_numpys_mean_and_covariance_even_far_from_zero():
    """Catches: a wrong merge of blocks, and sums of squares that cancel."""
    vectors = np.random.default_rng(0).normal(size=(50, 5)) + 1e6
    gaussian = gaussian_of(moments(vectors))
    np.testing.assert_allclose(gaussian.mean, vectors.mean(0), rtol=1e-14)
    np.testing.assert_allclose(gaussian.covariance, np.cov(vectors.T), rtol=1e-7)
    assert gaussian.num == 50


def test_merged_halves_are_the_whole():
    """Catches: a reference whose statistics differ from those of its two halves together."""
    vectors = np.random.default_rng(1).normal(size=(31, 4))
    first, second = moments(vectors[:9]), moments(vectors[9:])
    first.merge(second)
    first.merge(Moments(4))
    np.testing.assert_allclose(gaussian_of(first).covariance, np.cov(vectors.T), rtol=1e-12)


def test_one_vector_has_no_covariance():
    """Catches: a division by zero reported as a figure."""
    with pytest.raises(SitError, match="at least 2"):
        gaussian_of(moments(np.ones((1, 3))))


def test_what_is_left_without_some_vectors():
    """Catches: a rest whose covariance holds the shift between the two, far from 0 too."""
    vectors = np.random.default_rng(2).normal(size=(60, 4)) + 1e4
    vectors[:20] += 3
    some, others = moments(vectors[:20]), moments(vectors[20:])
    whole = merged([some, others])
    assert (some.num, whole.num) == (20, 60)
    rest = moments_of(gaussian_of(whole)).without(some)
    np.testing.assert_allclose(gaussian_of(rest).mean, vectors[20:].mean(0), rtol=1e-14)
    # Means of 1e4 have an error of 2e-12, which the step of 3 multiplies.
    np.testing.assert_allclose(gaussian_of(rest).covariance, np.cov(vectors[20:].T), atol=1e-10)
