"""The kernel distance: its subsets and its precision."""

import numpy as np
import pytest

from sitcli.metrics import kid
from sitcli.metrics.kid import kernel_distance, kernel_error


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


@pytest.mark.parametrize("shift", [0.0, 0.4])
@pytest.mark.parametrize("subsets", [(100, 1000), (5, 40)])
def test_the_error_is_the_spread_of_new_samples(monkeypatch, shift, subsets):
    """Catches: a bootstrap, whose repeated images raise the kernel's mean; and a formula without
    the part of the subsets, with images that have a first order in the distance and without."""
    monkeypatch.setattr(kid, "KID_SUBSETS", subsets[0] if subsets[1] < 1000 else 2)
    monkeypatch.setattr(kid, "KID_SUBSET_SIZE", subsets[1])
    rng = np.random.default_rng(6)
    real = rng.normal(size=(300, 6)).astype(np.float32)

    def draw():
        return (rng.normal(size=(150, 6)) + shift).astype(np.float32)

    if subsets[1] >= 1000:  # one subset of all images, for which one suffices
        real = real[:150]
    spread = np.std([kernel_distance(draw(), real, seed=1)[0] for _ in range(400)])
    errors = [kernel_error(draw(), real, seed=1) for _ in range(10)]
    # The spread of 400 is known to 4%, its tails are heavier; ten errors average to less.
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
