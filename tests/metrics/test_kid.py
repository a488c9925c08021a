"""The kernel distance: its subsets and its precision."""

import numpy as np

from sitcli.metrics.kid import kernel_distance


def test_kernel_distance_is_seeded_and_tells_a_shift():
    """Catches: an unseeded choice of subsets, and subsets larger than the sets."""
    a = np.random.default_rng(4).normal(size=(60, 8)).astype(np.float32)
    b = np.random.default_rng(5).normal(size=(40, 8)).astype(np.float32)
    assert kernel_distance(a, b, seed=1) == kernel_distance(a, b, seed=1)
    assert abs(kernel_distance(a, b, seed=1)[0]) < 0.1 < kernel_distance(a, b + 2, seed=1)[0]


def test_equal_sets_of_large_features_have_no_kernel_distance():
    """Catches: float32 kernels, whose cancellation leaves 655360 here."""
    constant = np.full((30, 768), 100, np.float32)
    assert abs(kernel_distance(constant, constant[:20], seed=0)[0]) < 1e-2
