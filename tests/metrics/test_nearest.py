"""Neighbours and balls, against sums of squared differences in float64."""

import numpy as np
import pytest

from sitcli.metrics.nearest import Points, Space


def squares(a, b):
    """Squared distances (M, N) by the definition."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.array([np.square(x - b).sum(axis=1) for x in a])


def scattered(rng, *, offset=0.0, spread=1.0, num=90, width=24):
    """Points with copies among them, and points at one distance from several others."""
    rows = rng.normal(size=(num, width)) * spread
    rows[: num // 6] = rows[num // 2]
    rows[num // 3 : num // 2] = rows[:1] + spread * np.eye(num, width)[: num // 2 - num // 3]
    return (rows + offset).astype(np.float32)


CASES = [(0.0, 1.0), (1e3, 1.0), (-3e4, 1.0), (0.0, 1e-22), (0.0, 1e17)]


@pytest.mark.parametrize(("offset", "spread"), CASES)
@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_radii_are_those_of_the_definition(offset, spread, neighbours):
    """Catches: equal points at a distance above 0, a copy taken for the point itself, and digits
    lost to a common offset or to the range of float32."""
    rows = scattered(np.random.default_rng(0), offset=offset, spread=spread)
    points = Points(rows)
    radii = Space(points).squared_radii(points, neighbours)[points.index]
    expected = np.sort(squares(rows, rows), axis=1)[:, neighbours]
    assert np.array_equal(radii == 0, expected == 0)
    assert (expected == 0).sum() == 16
    # Sums of 24 squares in another order: 24 roundings of 2^-53 each.
    np.testing.assert_allclose(radii, expected, rtol=24 * 2**-53)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(("offset", "spread"), CASES)
def test_copies_of_the_neighbour_lie_on_the_edge(closed, offset, spread):
    """Catches: products of matrices that put a copy of the ball's neighbour now inside and now
    outside, and a copy of a centre outside a ball of radius 0."""
    rng = np.random.default_rng(1)
    real = scattered(rng, offset=offset, spread=spread)
    fake = np.concatenate([real[::2], scattered(rng, offset=offset, spread=spread)])
    centres, points = Points(real), Points(fake)
    space = Space(centres, points)
    radii = space.squared_radii(centres, 3)
    found = np.concatenate(list(space.inside(points, centres, radii, closed=closed)))
    distances, edges = squares(fake, real), radii[centres.index]
    expected = distances <= edges if closed else distances < edges
    assert np.array_equal(found[points.index][:, centres.index], expected)
    assert (distances == edges).sum() > 50


def test_far_clusters_are_told_apart_inside_too():
    """Catches: float32 products alone, which see no distances within two clusters that lie
    100,000 of their widths apart, and hand every pair of them on."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(700, 16))
    rows[::2] += 1e5
    points = Points(rows)
    radii = Space(points).squared_radii(points, 3)[points.index]
    np.testing.assert_allclose(radii, np.sort(squares(rows, rows), axis=1)[:, 3], rtol=2e-15)


def test_points_count_their_copies_and_take_the_two_zeros_for_one():
    rows = np.array([[0.0, 1.0], [2.0, 3.0], [-0.0, 1.0], [0.0, 1.0]], np.float32)
    points = Points(rows)
    assert np.array_equal(points.rows, rows[:2])
    assert np.array_equal(points.number, [3, 1])
    assert np.array_equal(points.index, [0, 1, 0, 0])
