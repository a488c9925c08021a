"""Standard errors from halves and quarters, against the spread over independent draws."""

import numpy as np
import pytest
import torch

from sitcli.metrics.frechet import FrechetParts, frechet_distance
from sitcli.metrics.inception_score import inception_score, score_influence
from sitcli.metrics.moments import gaussian_of
from sitcli.metrics.neighbours import density_coverage
from sitcli.metrics.subsamples import LEAST, PER_ROUND, Parts, standard_error
from tests.tiny import moments

WIDTH = 48


def last(steps):
    """What a generator returns, and how many it yielded."""
    number = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, number
        number += 1


class Population:
    """Rectified features of ten classes with heavy tails, whose spectrum falls as 1 / k."""

    def __init__(self, width):
        rng = np.random.default_rng(0)
        scales = np.arange(1, width + 1) ** -0.5
        turn, other = (np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(2))
        self.mix = (turn * scales) @ other
        self.means = rng.normal(size=(10, width)) @ self.mix * 0.7
        self.bias = -0.3 * np.sqrt((scales**2).mean())

    def draw(self, num, rng, shift=0.0):
        z = rng.normal(size=(num, len(self.mix))) * np.sqrt(rng.gamma(4, 1 / 4, size=(num, 1)))
        x = z @ self.mix + self.means[rng.integers(10, size=num)]
        x = x * (1 + shift) + shift * 0.3 * self.means[0] + self.bias
        return np.maximum(x, 0).astype(np.float32)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("num", [24, 120, 470])
def test_the_error_of_a_frechet_distance_is_the_spread_of_new_samples(num, shift):
    """Catches: a bootstrap, whose resamples repeat images: its intervals are 1.2 to 2.8 times too
    wide, with half as many images as features and with ten times as many alike.

    The spread of 300 draws is known to 4%. The mean over 12 sets is known to 5%: single ones differ
    by about 0.15, as the tails are heavy. So 0.8 to 1.25 becomes 0.72 to 1.37 (two of the joint
    deviations of 0.065 each way).
    """
    population = Population(WIDTH)
    target = gaussian_of(moments(population.draw(8000, np.random.default_rng(1)), block=4000))
    rng = np.random.default_rng([2, num])
    distances = [
        frechet_distance(gaussian_of(moments(population.draw(num, rng, shift), num)), target)
        for _ in range(300)
    ]
    errors = []
    for seed in range(12):
        work = FrechetParts(population.draw(num, rng, shift), target)
        parts = Parts(num, work.gather, work.figure, work.influence())
        errors.append(last(standard_error(parts, number=60, seed=seed))[0])
    ratio = np.mean(errors) / np.std(distances)
    assert 0.8 * (1 - 0.1) < ratio < 1.25 * (1 + 0.1)


@pytest.mark.parametrize("num", [20, 300])
def test_parts_have_the_distance_of_their_images(num):
    """Catches: sums of parts that are not those of their images together, with fewer images than
    features (20 of 48) and with more."""
    population, rng = Population(WIDTH), np.random.default_rng(3)
    features = population.draw(num, rng) + np.float32(50)
    target = gaussian_of(moments(population.draw(400, rng) + 50.5))
    work = FrechetParts(features, target)
    numbers = rng.permutation(num)
    first, second = numbers[: num // 3], numbers[num // 3 : num // 2]
    both = np.concatenate([first, second])
    expected = frechet_distance(gaussian_of(moments(features[both])), target)
    found = work.figure([work.gather(first), work.gather(second)])
    # Square roots of eigenvalues keep 1e-8 of the largest, float32 products 1e-7.
    assert found == pytest.approx(expected, abs=1e-5 * np.trace(target.covariance))


def test_the_influence_is_the_derivative():
    """Catches: a wrong term or factor, at which the errors would still be right but slow: against
    the difference that a hundredth of an image more makes."""
    population, rng = Population(16), np.random.default_rng(4)
    features = population.draw(400, rng, 0.2)
    target = gaussian_of(moments(population.draw(4000, rng), block=4000))
    influence = FrechetParts(features, target).influence()

    def distance(weights):
        weights = weights / weights.sum()
        mean = weights @ features
        centred = (features - mean).astype(np.float64)
        covariance = (weights[:, None] * centred).T @ centred * 400 / 399
        return frechet_distance(type(target)(mean, covariance, None), target)

    for image in (0, 7):
        more = np.ones(400)
        more[image] += 0.01
        slope = (distance(more) - distance(np.ones(400))) / 0.01 * 400
        assert slope == pytest.approx(influence[image], rel=0.02, abs=2e-3)


@pytest.mark.parametrize("influence", [True, False])
def test_a_mean_has_the_error_of_a_mean(influence):
    """Catches: a wrong scale from halves to the whole. With the influences known it is exact."""
    values = np.random.default_rng(5).gamma(2, size=402)
    parts = Parts(
        402,
        lambda numbers: values[numbers],
        lambda found: np.concatenate(found).mean(),
        values - values.mean() if influence else None,
    )
    error, number = last(standard_error(parts, number=195, seed=0))
    assert number == 200  # whole rounds
    # 60 squares without it: a deviation of sqrt(1 / 120) = 0.09; the power adds as much.
    expected = values.std(ddof=1) / 402**0.5
    assert error == pytest.approx(expected, rel=1e-3 if influence else 0.3)


def test_without_a_first_order_the_error_falls_as_1_over_n():
    """Catches: the square root of N for a figure that has none: the square of a mean around 0,
    whose deviation is 2^0.5 / N."""
    found = []
    for seed in range(60):
        values = np.random.default_rng(seed).normal(size=200)
        parts = Parts(200, lambda n, v=values: v[n], lambda f: np.concatenate(f).mean() ** 2)
        found.append(last(standard_error(parts, number=100, seed=seed))[0] ** 2)
    # Its square is that of one draw's mean, which is heavy-tailed: 60 give it to a quarter.
    assert np.mean(found) ** 0.5 == pytest.approx(2**0.5 / 200, rel=0.35)


def test_the_error_of_an_inception_score_is_the_spread_of_new_samples():
    """Catches: the influence of another score, or parts that are split another way."""
    rng = np.random.default_rng(6)
    centres = rng.normal(size=(5, 8)) * 3

    def draw(num=400):
        logits = centres[rng.integers(5, size=num)] + rng.normal(size=(num, 8)) * 2
        return torch.from_numpy(logits)

    def score(logits):
        return inception_score(logits, seed=0, random_order=True)[0]

    spread = np.std([score(draw()) for _ in range(300)])
    errors = []
    for seed in range(8):
        logits = draw()
        parts = Parts(
            400,
            lambda numbers: numbers,
            lambda found, logits=logits: score(logits[np.concatenate(found)]),
            score_influence(logits),
        )
        errors.append(last(standard_error(parts, number=30, seed=seed))[0])
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)


def test_the_error_of_coverage_is_the_spread_of_new_samples():
    """Catches: hits of the wrong images, and bits read in another order."""
    rng = np.random.default_rng(7)
    real = rng.normal(size=(150, 4)).astype(np.float32)

    def draw():
        return density_coverage((rng.normal(size=(120, 4)) * 0.8).astype(np.float32), real)

    spread = np.std([draw().coverage for _ in range(300)])
    errors = []
    for seed in range(10):
        found = draw()
        parts = Parts(
            120,
            lambda numbers, found=found: np.bitwise_or.reduce(found.hits[numbers]),
            found.coverage_of,
        )
        errors.append(last(standard_error(parts, number=100, seed=seed))[0])
    assert 0.8 * 0.9 < np.mean(errors) / spread < 1.25 * 1.1


def test_the_least_number_gives_quarters_of_two():
    parts = Parts(LEAST, lambda n: n, lambda found: float(len(np.concatenate(found))))
    assert last(standard_error(parts, number=1, seed=0)) == (0.0, PER_ROUND)
