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
    density, coverage, *_ = density_coverage(real, real)
    assert density.mean() == pytest.approx(1.0, abs=1e-12)
    assert coverage == 1.0
    density, coverage, *_ = density_coverage(real + 100, real)
    assert (density.sum(), coverage) == (0.0, 0.0)
    with pytest.raises(SitError, match="all alike"):
        density_coverage(real, np.ones_like(real))


def test_density_and_coverage_equal_a_loop_over_their_definition():
    """Catches: radii of the wrong set, or sums along the wrong axis (Naeem 2020, eqs. 3, 4)."""
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(40, 3)), rng.normal(size=(25, 3)) * 0.7
    balls = [(x, sorted(np.linalg.norm(x - other) for other in real)[5]) for x in real]
    inside = np.array([[np.linalg.norm(y - x) < r for x, r in balls] for y in fake])
    density, coverage, *_ = density_coverage(fake, real)
    np.testing.assert_allclose(density, inside.sum(1) / 5)
    assert coverage == inside.any(0).mean()


def defined(generated, real):
    """Precision, recall, density and coverage by their definitions in float64 (Kynkaanniemi et al.
    2019, eqs. 1 and 2 with k = 3; Naeem et al. 2020, eqs. 3 and 4 with k = 5)."""

    def squared(a, b):
        return np.array([np.square(x - b).sum(axis=1) for x in a.astype(np.float64)])

    def reach(points, k):
        return np.sort(squared(points, points), axis=1)[:, k]

    across = squared(generated, real)
    precision = (across <= reach(real, 3)).any(axis=1).mean()
    backwards = across.T
    recall = (backwards <= reach(generated, 3)).any(axis=1).mean()
    balls = across < reach(real, 5)
    return precision, recall, balls.sum(axis=1) / 5, balls.any(axis=0).mean()


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4])
@pytest.mark.parametrize("copies", ["none", "among real", "among generated", "of real", "all"])
def test_all_four_are_the_public_definitions_with_copies_and_offsets(copies, offset):
    """Catches: distances above 0 between equal images, from |x|^2 + |y|^2 - 2 x.y: balls that
    should have radius 0 then hold their own centre's copies, and copies of the neighbour that a
    ball reaches to fall inside or outside as the rounding has it."""
    rng = np.random.default_rng(7)
    real = rng.normal(size=(240, 64)).astype(np.float32) + np.float32(offset)
    generated = (rng.normal(size=(200, 64)) * 0.9).astype(np.float32) + np.float32(offset)
    if copies in ("among real", "all"):
        real[:60] = real[60:66].repeat(10, axis=0)
    if copies in ("among generated", "all"):
        generated[:40] = generated[100]
    if copies in ("of real", "all"):
        generated[150:] = real[30:80]
    precision, recall, density, coverage = defined(generated, real)
    assert precision_recall(generated, real) == (precision, recall)
    found = density_coverage(generated, real)
    np.testing.assert_array_equal(found[0], density)
    assert found[1] == coverage


def test_a_set_of_copies_has_the_density_of_the_definition():
    """Catches: twice the density and the coverage, as versions up to 0.7.0 had them, for a
    reference in which every image but one is there seven times: every ball but one has radius 0
    and is empty."""
    rng = np.random.default_rng(8)
    real = rng.normal(size=(30, 2048)).astype(np.float32).repeat(7, axis=0) + np.float32(0.4)
    real = np.concatenate([real, rng.normal(size=(1, 2048)).astype(np.float32)])
    density, coverage, *_ = density_coverage(real[::7], real)
    assert np.array_equal(density, defined(real[::7], real)[2])
    assert density.sum() == 1 / 5
    assert coverage == defined(real[::7], real)[3] == 1 / 211


def test_hits_of_all_images_are_the_coverage():
    """Catches: bits of other images or other balls, at a number of balls that fills no byte."""
    rng = np.random.default_rng(9)
    real = rng.normal(size=(43, 3)).astype(np.float32)
    real[5:8] = real[4]
    found = density_coverage(np.repeat(real[::4] * 0.9, 2, axis=0), real)
    hits = np.unpackbits(found.hits, axis=1, count=len(found.number))
    np.testing.assert_allclose(hits @ found.number / 5, found.density)
    assert found.coverage_of(found.hits[:4]) == hits[:4].any(axis=0) @ found.number / 43
    assert found.coverage == found.coverage_of(found.hits)
