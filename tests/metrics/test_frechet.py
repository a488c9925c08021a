"""The Frechet distance: closed forms, torch-fidelity's figures, degenerate sets."""

import numpy as np
import pytest
import torch

from sitcli.metrics.frechet import frechet_distance
from sitcli.metrics.moments import Gaussian, gaussian_of
from tests.tiny import moments


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    """Catches: a wrong trace term: sum (sqrt a - sqrt b)^2 + |m|^2 when both are diagonal."""
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    a, b = np.arange(1.0, 7.0), np.array([4.0, 0.5, 9.0, 1.0, 2.0, 0.0])
    first = Gaussian(np.zeros(6), rotation @ np.diag(a) @ rotation.T, None)
    second = Gaussian(np.full(6, 2.0), rotation @ np.diag(b) @ rotation.T, None)
    expected = 24 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num", [5, 200])
def test_a_shift_costs_its_square_and_nothing_costs_nothing(num):
    """Catches: rounding from square roots of zero eigenvalues when images are fewer than features
    (5 of 64), which an eigenvalue method leaves at 1e-6 of the trace."""
    vectors = np.random.default_rng(3).normal(size=(num, 64)) * 100
    same, shifted = gaussian_of(moments(vectors)), gaussian_of(moments(vectors + 3.0))
    trace = np.trace(same.covariance)
    assert frechet_distance(same, same) < 1e-11 * trace
    assert frechet_distance(same, shifted) == pytest.approx(64 * 9.0, abs=1e-11 * trace)


def test_constant_images_have_a_distance():
    """Catches: a crash or nan for covariances that are exactly zero."""
    constant = gaussian_of(moments(np.ones((10, 8))))
    other = gaussian_of(moments(np.zeros((10, 8))))
    assert frechet_distance(constant, other) == pytest.approx(8.0, rel=1e-12)
    assert frechet_distance(constant, constant) == 0.0


def test_frechet_distance_equals_torch_fidelitys_and_is_exact_where_that_is_not():
    """Catches: a difference in formula; and, for fewer images than features, in precision: the
    factors are then known, torch-fidelity is off by 1e-7 and we may be by 1e-12."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    def theirs(a, b):
        a, b = (fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b))
        return fid_statistics_to_metric(a, b, False)["frechet_inception_distance"]

    def ours(a, b):
        return frechet_distance(gaussian_of(moments(a)), gaussian_of(moments(b)))

    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(300, 20)) ** 2, rng.normal(size=(200, 20))
    assert ours(a, b) == pytest.approx(theirs(a, b), rel=1e-10)
    mix = rng.normal(size=(20, 256))
    a, b = (a @ mix)[:9], (b @ mix)[:8]
    assert ours(a, b) == pytest.approx(theirs(a, b), rel=1e-5)
    first, second = (a - a.mean(0)) / np.sqrt(8), (b - b.mean(0)) / np.sqrt(7)
    cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    exact = shift + np.square(first).sum() + np.square(second).sum() - 2 * cross
    assert ours(a, b) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("num", "width"), [(40, 12), (6, 12), (2, 12)])
def test_the_square_roots_error_is_what_is_said(num, width):
    """Catches: a square root that loses half the digits, when images are fewer than features too:
    against 60 digits, tr((S1 S2)^(1/2)) from the eigenvalues of S1 S2, which mpmath can afford."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(num)
    a, b = rng.normal(size=(num, width)) * 10, rng.normal(size=(num, width)) + 1
    first, second = gaussian_of(moments(a)), gaussian_of(moments(b))
    with mpmath.workdps(60):

        def covariance(x):
            rows = mpmath.matrix(x.tolist())
            mean = [mpmath.fsum(rows[:, j]) / num for j in range(width)]
            centred = mpmath.matrix(num, width)
            for i in range(num):
                for j in range(width):
                    centred[i, j] = rows[i, j] - mean[j]
            return centred.T * centred / (num - 1), mean

        (s1, m1), (s2, m2) = covariance(a), covariance(b)
        values = mpmath.eig(s1 * s2, left=False, right=False)
        # Of a rank-deficient product what should be zero is 1e-60: its root is below the error.
        root = mpmath.fsum(mpmath.sqrt(abs(mpmath.re(v))) for v in values)
        trace = mpmath.fsum(s1[i, i] + s2[i, i] for i in range(width))
        shift = mpmath.fsum((p - q) ** 2 for p, q in zip(m1, m2, strict=True))
        exact = float(shift + trace - 2 * root)
    assert abs(frechet_distance(first, second) - exact) < 1e-12 * float(trace)
