"""The standard error of a figure of some images, from figures of halves and quarters of them.

A bootstrap repeats images, and a Frechet distance takes repetitions for structure: its spread over
resamples is 1.2 to 2.8 times that over independent draws. Disjoint parts repeat nothing. They are
independent draws themselves, so that the spread among halves and among quarters is measured
without bias, and what is left to assume is how the variance goes on from N/4 and N/2 to N: as the
same power of N. Politis, Romano and Wolf 1999, chapter 8, estimate the power in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

PER_ROUND = 10  # figures of a round: four quarters, and the halves of their three pairings
LEAST = 8  # images that are needed: a quarter of one has no covariance
PAIRINGS = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2))  # quarters of one half, then of the other


class Parts(NamedTuple):
    """How to compute a figure of a part of `num` images.

    gather: numbers of images (n,) -> what their figure needs. figure: several gathered -> the
    figure of their images together. influence: (num,), how much each image moves the figure, to
    first order; a good one saves rounds, a bad one does no harm. None if unknown.
    """

    num: int
    gather: Callable[[np.ndarray], Any]
    figure: Callable[[Sequence[Any]], float]
    influence: np.ndarray | None = None


def numpy_seed(seed: int) -> int:
    """The seed in the 32 bits that numpy takes."""
    return seed % (1 << 32)


def standard_error(parts: Parts, *, number: int, seed: int) -> Generator[int, None, float]:
    """The standard deviation of a figure over independent draws of its images.

    number: how many figures of parts are computed, rounded up to whole rounds of 10; their count
    is yielded after each. The variance is taken to fall from halves to the whole by the power of N
    by which it falls from quarters to halves, but not slower than 1/N, as a mean's, nor faster
    than 1/N^2, as that of a figure without a first order. Needs 8 images.
    """
    draw = np.random.default_rng([numpy_seed(seed), parts.num])
    size = parts.num // 4
    moves = np.zeros(parts.num) if parts.influence is None else parts.influence
    quarters, halves = _Contrasts(moves, size), _Contrasts(moves, 2 * size)
    done = 0
    for _ in range(-(-number // PER_ROUND)):
        order = draw.permutation(parts.num)[: 4 * size].reshape(4, size)
        found = [parts.gather(numbers) for numbers in order]
        first = moves[order].mean(axis=1)
        figures = np.empty(4)
        for i, one in enumerate(found):
            figures[i] = parts.figure([one])
            yield (done := done + 1)
        # Three contrasts among four, each of the variance of one.
        quarters.add(_ORTHOGONAL @ figures, _ORTHOGONAL @ first)
        for a, b, c, d in PAIRINGS:
            pair = []
            for half in ((a, b), (c, d)):
                pair.append(parts.figure([found[i] for i in half]))
                yield (done := done + 1)
            difference = (first[a] + first[b] - first[c] - first[d]) / 2
            halves.add([(pair[0] - pair[1]) / 2**0.5], [difference / 2**0.5])
    of_half = halves.variance()
    if of_half == 0:
        return 0.0
    power = float(np.clip(np.log2(quarters.variance() / of_half), 1, 2))
    return (of_half * (2 * size / parts.num) ** power) ** 0.5


# Rows of unit length, orthogonal to each other and to (1, 1, 1, 1).
_ORTHOGONAL = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2


class _Contrasts:
    """Differences between disjoint parts of `size` images, scaled to the variance of one part.

    What the influences explain of them is known without drawing: its variance is theirs, s^2 over
    the size. Only the rest is estimated from the differences.
    """

    def __init__(self, influence: np.ndarray, size: int) -> None:
        self.expected = float(influence.var(ddof=1)) / size
        self.values: list[float] = []
        self.explained: list[float] = []

    def add(self, values: Sequence[float], explained: Sequence[float]) -> None:
        """Add differences of figures, and of the means of the influences in the same parts."""
        self.values.extend(values)
        self.explained.extend(explained)

    def variance(self) -> float:
        """The variance of the figure of one part over independent draws."""
        d, e = np.array(self.values), np.array(self.explained)
        squares = e @ e
        if not squares:
            return float(np.mean(d * d))
        slope = d @ e / squares
        rest = np.square(d - slope * e).sum() / (len(d) - 1)
        return float(rest + slope**2 * self.expected)
