"""How wide the intervals of a Frechet distance are, beside the spread that they estimate.

    python examples/evaluation/intervals.py
    python examples/evaluation/intervals.py --width 256 --numbers 125 625 2500 --redraw

The images are those of a population with as many features as InceptionV3's pool layer: ten classes,
heavy tails, a spectrum that falls as 1 / k, rectified. Each row draws --draws sample sets of N
images, computes their distances to one reference, and prints the standard deviation of these
(spread), the standard errors that sit estimates from single sets divided by it (sit), those of a
bootstrap (bootstrap), and the spread where every set meets a reference of its own (reference drawn
too), as large as the fixed one. At width 2048 it takes about an hour on two cores.
"""

from __future__ import annotations

import argparse

import numpy as np

from sitcli.metrics.frechet import FrechetParts
from sitcli.metrics.moments import Gaussian, Moments, gaussian_of
from sitcli.metrics.subsamples import Parts, standard_error


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--numbers", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--reference", type=int, help="images of it [default: 20 times --width]")
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--parts", type=int, default=50, help="as --bootstrap of sit evaluate")
    parser.add_argument("--shifts", type=float, nargs="+", default=[0.05])
    parser.add_argument("--redraw", action="store_true", help="draw references too")
    options = parser.parse_args()
    population = Population(options.width)
    size = options.reference or 20 * options.width
    target = reference(population, size, seed=1)
    print(f"{'shift':>5} {'N':>6} {'FD':>9} {'spread':>9} {'sit':>13} {'bootstrap':>13}", end="")
    print(" reference drawn too" if options.redraw else "")
    for shift in options.shifts:
        for num in options.numbers:
            values, others = [], []
            for draw in range(options.draws):
                features = population.draw(num, np.random.default_rng([2, num, draw]), shift)
                values.append(distance(features, target))
                if options.redraw:
                    own = reference(population, size, seed=1000 + draw)
                    others.append(distance(features, own))
            spread = np.std(values, ddof=1)
            ratios = [
                errors(population.draw(num, np.random.default_rng([3, num, i]), shift), target, i,
                       options.parts) / spread
                for i in range(options.sets)
            ]  # fmt: skip
            ours, bootstrap = zip(*ratios, strict=True)
            print(f"{shift:5} {num:6} {np.mean(values):9.4g} {spread:9.3g}", end=" ")
            print(*(f"{np.mean(r):6.2f} ± {np.std(r):4.2f}" for r in (ours, bootstrap)), end="")
            print(f" {np.std(others, ddof=1) / spread:6.2f}" if others else "", flush=True)


class Population:
    """Where the images come from."""

    def __init__(self, width: int) -> None:
        rng = np.random.default_rng(0)
        scales = np.arange(1, width + 1) ** -0.5
        turn, other = (np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(2))
        self.mix = ((turn * scales) @ other).astype(np.float32)
        self.means = (rng.normal(size=(10, width)) @ self.mix * 0.7).astype(np.float32)
        self.bias = np.float32(-0.3 * np.sqrt((scales**2).mean()))

    def draw(self, num: int, rng: np.random.Generator, shift: float = 0.0) -> np.ndarray:
        """Features (num, width) float32, of the reference's population at shift 0."""
        z = rng.standard_normal((num, len(self.mix)), dtype=np.float32)
        z *= np.sqrt(rng.gamma(4, 1 / 4, size=(num, 1))).astype(np.float32)
        x = z @ self.mix + self.means[rng.integers(10, size=num)]
        return np.maximum(x * (1 + shift) + shift * 0.3 * self.means[0] + self.bias, 0)


def reference(population: Population, size: int, *, seed: int) -> Gaussian:
    """Mean and covariance of `size` images at shift 0."""
    rng, total = np.random.default_rng([1, seed]), Moments(len(population.mix))
    for start in range(0, size, 8192):
        total.add(population.draw(min(8192, size - start), rng))
    return gaussian_of(total)


def distance(features: np.ndarray, target: Gaussian) -> float:
    """The Frechet distance, to the 8 digits that a spread needs."""
    work = FrechetParts(features, target)
    return work.figure([work.gather(np.arange(len(features)))])


def errors(features: np.ndarray, target: Gaussian, seed: int, number: int) -> np.ndarray:
    """The standard errors of sit, and of a bootstrap of 20 resamples."""
    work, num = FrechetParts(features, target), len(features)
    steps = standard_error(
        Parts(num, work.gather, work.figure, work.influence()), number=number, seed=seed
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found = end.value
            break
    rng = np.random.default_rng([4, seed])
    resamples = [work.figure([work.gather(rng.integers(num, size=num))]) for _ in range(20)]
    return np.array([found, np.std(resamples, ddof=1)])


if __name__ == "__main__":
    main()
