"""Resamples of a set, for intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np


def numpy_seed(seed: int) -> int:
    """The seed in the 32 bits that numpy takes."""
    return seed % (1 << 32)


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], float], *, number: int, seed: int
) -> Iterator[float]:
    """Yield `statistic` of each of `number` bootstrap resamples of `rows` (N, ...)."""
    for counts in draw_resamples(len(rows), number, seed):
        yield statistic(rows[np.repeat(np.arange(len(rows)), counts)])


def draw_resamples(num: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """Yield, `number` times, how often each of `num` images is drawn, (num,)."""
    draw = np.random.default_rng([numpy_seed(seed), num])
    for _ in range(number):
        yield np.bincount(draw.integers(num, size=num), minlength=num)
