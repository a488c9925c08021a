"""How training draws times, and how a shift moves times in training and in sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from sitcli.core.intervals import Interval

Time = TypeVar("Time", float, Tensor)
# The latent for which no shift is wanted: of the SD VAE at 256 pixels, 4 x 32 x 32.
REFERENCE_NUMEL = 4096


def shifted(t: Time, shift: float) -> Time:
    """t' = s t / (1 + (s - 1) t): 0 and 1 stay, s > 1 moves what is between towards the noise.

    Esser et al. 2024 (Stable Diffusion 3), eq. 23. The inverse is the shift by 1 / s.
    """
    return shift * t / (1 + (shift - 1) * t)


def natural_shift(shape: tuple[int, int, int]) -> float:
    """s = sqrt(C h w / 4096) for latents (C, h, w).

    Neighbouring values of a larger latent tell more about each other, so hiding as much of it takes
    more noise. The square root of the ratio is from Esser et al. 2024, section 5.3.2; counting the
    channels too is from Zheng et al. 2025 (RAE). It is 1 for the SD VAE's 4 x 32 x 32.
    """
    return math.sqrt(math.prod(shape) / REFERENCE_NUMEL)


class Random(Protocol):
    """The random numbers of B items, in turn: each call gives every item `shape` further ones."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape) float32."""

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), (B, *shape) float32."""

    def integers(self, below: int, *shape: int) -> Tensor:
        """Integers in [0, below), (B, *shape) int64."""

    def permutation(self, number: int) -> Tensor:
        """0 .. number - 1 in a random order for every item, (B, number) int64."""


def uniform(random: Random, *, mean: float, std: float) -> Tensor:
    """Uniform on [0, 1)."""
    return random.uniform()


def logit_normal(random: Random, *, mean: float, std: float) -> Tensor:
    """sigmoid(n), n normal: a mean above 0 favours noise (Esser et al. 2024, section 3.1)."""
    return torch.sigmoid(mean + std * random.normal())


class TimeDistribution(NamedTuple):
    """draw(random, mean=, std=) -> times (B,) in [0, 1], one for each item of `random`;
    has_moments: whether it looks at mean and std."""

    draw: Callable[..., Tensor]
    has_moments: bool = False


TIME_DISTRIBUTIONS: dict[str, TimeDistribution] = {
    "uniform": TimeDistribution(uniform),
    "logit-normal": TimeDistribution(logit_normal, has_moments=True),
}


@dataclass(frozen=True, kw_only=True)
class Times:
    """How training times are drawn, as shares of the process's interval.

    distribution: a row of TIME_DISTRIBUTIONS; mean, std: of the logit-normal's normal; shift: see
    `shifted`, 1 is none.
    """

    distribution: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether the times are uniform and not shifted."""
        return (self.distribution, self.shift) == (Times.distribution, Times.shift)

    def draw(self, random: Random) -> Tensor:
        """Draw times (B,) in [0, 1]."""
        draw = TIME_DISTRIBUTIONS[self.distribution].draw
        u = draw(random, mean=self.mean, std=self.std)
        return u if self.shift == 1 else shifted(u, self.shift)


PLAIN = Times()


def time_grid(interval: Interval, steps: int, shift: float = 1.0) -> list[float]:
    """steps + 1 times that are equally spaced before they are shifted, both ends exact.

    If the interval says where its jump begins, the other steps divide the time before that.
    """
    start, end, jump_from = interval.start, interval.end, interval.jump_from
    if jump_from and steps > 1:
        before = interval._replace(end=min(jump_from, start), jump_from=0.0)
        return [*time_grid(before, steps - 1, shift), end]
    if shift == 1:
        return [start + (end - start) * (i / steps) for i in range(steps)] + [end]
    first, last = shifted(start, 1 / shift), shifted(end, 1 / shift)
    inner = [shifted(first + (last - first) * (i / steps), shift) for i in range(1, steps)]
    return [start, *inner, end]
