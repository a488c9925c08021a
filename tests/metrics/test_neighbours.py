"""Precision and recall, density and coverage, against their definitions."""

import numpy as np
import pytest
import torch

from sitcli.errors import SitError
from sitcli.metrics.neighbours import density_coverage, precision_recall


def test_precision_and_recall_are_not_swapped():
    """Catches: generated and real exchanged: few modes are precise and recall little."""
    real = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    generated = real[:30] * 0.3
    precision, recall = precision_recall(generated, real)
    assert precision == 1.0
    assert recall < 0.6


def test_constant_images_are_precise_and_recalled():
    """Catches: ties of distances that rounding turns into misses."""
    constant = np.full((30, 768), 0.3, np.float32)
    assert precision_recall(constant, constant[:20]) == (1.0, 1.0)
    assert precision_recall(constant, constant[:20] + 1) == (0.0, 0.0)


def test_density_and_coverage_of_identical_disjoint_and_constant_sets():
    """Catches: closed balls, or a neighbour counted wrongly: of a set against itself each image
    lies in exactly 5 open balls on average and all balls are covered; far sets share nothing."""
    real = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    density, coverage = density_coverage(real, real)
    assert density.mean() == pytest.approx(1.0, abs=1e-12)
    assert coverage == 1.0
    density, coverage = density_coverage(real + 100, real)
    assert (density.sum(), coverage) == (0.0, 0.0)
    with pytest.raises(SitError, match="all alike"):
        density_coverage(real, np.ones_like(real))


def test_density_and_coverage_equal_a_loop_over_their_definition():
    """Catches: radii of the wrong set, or sums along the wrong axis (Naeem 2020, eqs. 3, 4)."""
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(40, 3)), rng.normal(size=(25, 3)) * 0.7
    balls = [(x, sorted(np.linalg.norm(x - other) for other in real)[5]) for x in real]
    inside = np.array([[np.linalg.norm(y - x) < r for x, r in balls] for y in fake])
    density, coverage = density_coverage(fake, real)
    np.testing.assert_allclose(density, inside.sum(1) / 5)
    assert coverage == inside.any(0).mean()
