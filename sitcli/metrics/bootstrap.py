"""Resamples of a set, for intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np


def numpy_seed(seed: int) -> int:
    return seed % (1 << 32)


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], float], *, number: int, seed: int
) -> Iterator[float]:
    """`statistic` of `number` resamples of `rows` (N, ...), one by one."""
    for counts in draw_resamples(len(rows), number, seed):
        yield statistic(rows[np.repeat(np.arange(len(rows)), counts)])


def draw_resamples(num: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `num` images is drawn, (num,), `number` times."""
    draw = np.random.default_rng([numpy_seed(seed), num])
    for _ in range(number):
        yield np.bincount(draw.integers(num, size=num), minlength=num)
