"""Distances of features: closed forms, torch-fidelity's own figures, degenerate sets."""

import numpy as np
import pytest
import torch

from sitcli.errors import SitError
from sitcli.metrics.bootstrap import bootstrap
from sitcli.metrics.frechet import bootstrap_frechet, frechet_distance
from sitcli.metrics.inception_score import inception_score
from sitcli.metrics.kid import kernel_distance
from sitcli.metrics.moments import Gaussian, Moments, gaussian_of
from sitcli.metrics.neighbours import density_coverage, precision_recall
from tests.tiny import moments


def test_blocks_give_numpys_mean_and_covariance_even_far_from_zero():
    """Catches a wrong merge of blocks, and sums of squares that cancel."""
    vectors = np.random.default_rng(0).normal(size=(50, 5)) + 1e6
    gaussian = gaussian_of(moments(vectors))
    np.testing.assert_allclose(gaussian.mean, vectors.mean(0), rtol=1e-14)
    np.testing.assert_allclose(gaussian.covariance, np.cov(vectors.T), rtol=1e-7)
    assert gaussian.num == 50


def test_merged_halves_are_the_whole():
    """Catches a reference whose statistics differ from those of its two halves together."""
    vectors = np.random.default_rng(1).normal(size=(31, 4))
    first, second = moments(vectors[:9]), moments(vectors[9:])
    first.merge(second)
    first.merge(Moments(4))
    np.testing.assert_allclose(gaussian_of(first).covariance, np.cov(vectors.T), rtol=1e-12)


def test_one_vector_has_no_covariance():
    """Catches a division by zero reported as a figure."""
    with pytest.raises(SitError, match="at least 2"):
        gaussian_of(moments(np.ones((1, 3))))


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    """Catches a wrong trace term: sum (sqrt a - sqrt b)^2 + |m|^2 when both are diagonal."""
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    a, b = np.arange(1.0, 7.0), np.array([4.0, 0.5, 9.0, 1.0, 2.0, 0.0])
    first = Gaussian(np.zeros(6), rotation @ np.diag(a) @ rotation.T, None)
    second = Gaussian(np.full(6, 2.0), rotation @ np.diag(b) @ rotation.T, None)
    expected = 24 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num", [5, 200])
def test_a_shift_costs_its_square_and_nothing_costs_nothing(num):
    """Catches rounding from square roots of zero eigenvalues when images are fewer than features
    (5 of 64), which an eigenvalue method leaves at 1e-6 of the trace."""
    vectors = np.random.default_rng(3).normal(size=(num, 64)) * 100
    same, shifted = gaussian_of(moments(vectors)), gaussian_of(moments(vectors + 3.0))
    trace = np.trace(same.covariance)
    assert frechet_distance(same, same) < 1e-11 * trace
    assert frechet_distance(same, shifted) == pytest.approx(64 * 9.0, abs=1e-11 * trace)


def test_constant_images_have_a_distance():
    """Catches a crash or nan for covariances that are exactly zero."""
    constant = gaussian_of(moments(np.ones((10, 8))))
    other = gaussian_of(moments(np.zeros((10, 8))))
    assert frechet_distance(constant, other) == pytest.approx(8.0, rel=1e-12)
    assert frechet_distance(constant, constant) == 0.0


def test_precision_and_recall_are_not_swapped():
    """Catches generated and real exchanged: few modes are precise and recall little."""
    real = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    generated = real[:30] * 0.3
    precision, recall = precision_recall(generated, real)
    assert precision == 1.0
    assert recall < 0.6


def test_kernel_distance_is_seeded_and_tells_a_shift():
    """Catches an unseeded choice of subsets, and subsets larger than the sets."""
    a = np.random.default_rng(4).normal(size=(60, 8)).astype(np.float32)
    b = np.random.default_rng(5).normal(size=(40, 8)).astype(np.float32)
    assert kernel_distance(a, b, seed=1) == kernel_distance(a, b, seed=1)
    assert abs(kernel_distance(a, b, seed=1)[0]) < 0.1 < kernel_distance(a, b + 2, seed=1)[0]


def test_equal_sets_of_large_features_have_no_kernel_distance():
    """Catches float32 kernels, whose cancellation leaves 655360 here."""
    constant = np.full((30, 768), 100, np.float32)
    assert abs(kernel_distance(constant, constant[:20], seed=0)[0]) < 1e-2


def test_constant_images_are_precise_and_recalled():
    """Catches ties of distances that rounding turns into misses."""
    constant = np.full((30, 768), 0.3, np.float32)
    assert precision_recall(constant, constant[:20]) == (1.0, 1.0)
    assert precision_recall(constant, constant[:20] + 1) == (0.0, 0.0)


def test_inception_score_of_certain_and_balanced_classes_is_their_number():
    """Catches splits of sorted files that do not see all classes, and a wrong number of them."""
    logits = torch.eye(4).repeat_interleave(250, dim=0) * 100
    score, spread, recipe = inception_score(logits, seed=0, ordered=False)
    assert recipe == {"splits": 10, "shuffled": True}
    assert score == pytest.approx(4.0, abs=0.1)
    assert spread < 0.1
    assert inception_score(torch.randn(15_000, 3), seed=0, ordered=True)[2] == {
        "splits": 3,
        "shuffled": False,
    }


def test_frechet_distance_equals_torch_fidelitys_and_is_exact_where_that_is_not():
    """Catches a difference in formula; and, for fewer images than features, in precision: the
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
    """Fault: a square root that loses half the digits, when images are fewer than features too:
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


def test_density_and_coverage_of_identical_disjoint_and_constant_sets():
    """Fault: closed balls, or a neighbour counted wrongly: of a set against itself each image lies
    in exactly 5 open balls on average and all balls are covered; far sets share nothing."""
    real = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    density, coverage = density_coverage(real, real)
    assert density.mean() == pytest.approx(1.0, abs=1e-12)
    assert coverage == 1.0
    density, coverage = density_coverage(real + 100, real)
    assert (density.sum(), coverage) == (0.0, 0.0)
    with pytest.raises(SitError, match="all alike"):
        density_coverage(real, np.ones_like(real))


def test_density_and_coverage_equal_a_loop_over_their_definition():
    """Fault: radii of the wrong set, or sums along the wrong axis (Naeem 2020, eqs. 3, 4)."""
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(40, 3)), rng.normal(size=(25, 3)) * 0.7
    balls = [(x, sorted(np.linalg.norm(x - other) for other in real)[5]) for x in real]
    inside = np.array([[np.linalg.norm(y - x) < r for x, r in balls] for y in fake])
    density, coverage = density_coverage(fake, real)
    np.testing.assert_allclose(density, inside.sum(1) / 5)
    assert coverage == inside.any(0).mean()


def test_identical_and_disjoint_sets():
    """Fault: any metric that does not know equal sets from sets that have nothing in common."""
    rng = np.random.default_rng(2)
    a = rng.normal(size=(200, 8)).astype(np.float32)
    far = a + 1000
    one, other = gaussian_of(moments(a)), gaussian_of(moments(far))
    assert frechet_distance(one, one) < 1e-10
    # float32 keeps 1000 + x to 3e-5.
    assert frechet_distance(one, other) == pytest.approx(8e6, rel=1e-6)
    assert precision_recall(a, a) == (1.0, 1.0)
    assert precision_recall(far, a) == (0.0, 0.0)
    # The unbiased estimate of a set against itself is known: what the diagonal makes it.
    kernel = (a.astype(np.float64) @ a.T / 8 + 1) ** 3
    same = 2 * ((kernel.sum() - np.trace(kernel)) / (200 * 199) - kernel.mean())
    assert kernel_distance(a, a, seed=0)[0] == pytest.approx(same, rel=1e-9)
    assert kernel_distance(far, a, seed=0)[0] > 1e15


def test_the_bootstraps_spread_is_that_of_new_samples():
    """Fault: resamples of the wrong size, or without replacement, whose spread is another than the
    one fresh samples have: here the distance of 300 draws of a known Gaussian, drawn 200 times."""
    rng = np.random.default_rng(3)
    target = Gaussian(np.zeros(4), np.eye(4), None)

    def draw():
        return (rng.normal(size=(300, 4)) * 1.3 + 0.5).astype(np.float32)

    fresh = np.std([frechet_distance(gaussian_of(moments(draw())), target) for _ in range(200)])
    spreads = [np.std(list(bootstrap_frechet(draw(), target, number=60, seed=i))) for i in range(5)]
    assert np.mean(spreads) == pytest.approx(fresh, rel=0.2)


def test_resamples_give_the_distance_of_repeated_images():
    """Fault: moments of counts that differ from those of the images written out."""
    features = np.random.default_rng(4).normal(size=(50, 6)).astype(np.float32)
    target = Gaussian(np.ones(6), np.diag(np.arange(1.0, 7.0)), None)

    def distance(rows):
        return frechet_distance(gaussian_of(moments(rows)), target)

    quick = list(bootstrap_frechet(features, target, number=4, seed=9))
    slow = list(bootstrap(features, distance, number=4, seed=9))
    np.testing.assert_allclose(quick, slow, rtol=1e-6)
    assert len(set(quick)) == 4


def test_inception_score_takes_the_splits_it_is_told():
    """Fault: --isc-splits that does nothing; one split of all is the score without a spread."""
    logits = torch.randn(120, 5, generator=torch.Generator().manual_seed(0)) * 3
    one, none, recipe = inception_score(logits, seed=0, ordered=False, splits=1)
    p = logits.double().softmax(1)
    expected = float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp())
    assert one == pytest.approx(expected, rel=1e-6)
    assert (none, recipe["splits"]) == (0.0, 1)
    assert inception_score(logits, seed=0, ordered=False, splits=6)[1] > 0
