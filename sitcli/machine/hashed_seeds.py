"""The random streams of version 0.7 and earlier, for runs and sample sets that they began.

They hash (seed, what, number) to the seed of a torch generator. On the CPU torch uses the low 32
bits of it, so that among a million images about 116 have the noise of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sitcli.core.times import Random


def stream_seed(seed: int, *what: object) -> int:
    """A 63-bit seed that is a function of (seed, what) alone, equal on every platform."""
    text = repr((int(seed), *what)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *what: object) -> torch.Generator:
    """A CPU generator for the stream (seed, what)."""
    return torch.Generator().manual_seed(stream_seed(seed, *what))


class Hashed:
    """The streams of one seed, with the methods of `seeds.Streams`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def order(self, epoch: int, number: int) -> np.ndarray:
        """The order of `number` images in an epoch, (number,) int64."""
        return torch.randperm(number, generator=generator(self.seed, "epoch", epoch)).numpy()

    def step(
        self, step: int, first: int, size: int, part: slice, *, again: bool = False
    ) -> Callable[[object], Random]:
        """What a step draws for the images `part` of its global batch of `size`.

        It comes from one generator, whatever it is for, so that the order of the calls counts.
        """
        whole = _OneGenerator(
            generator(self.seed, "step", step, *(["again"] if again else [])), size, part
        )
        return lambda stream: whole

    def grid(self, number: int) -> Random:
        """The noise of the `number` images of training's grids."""
        return _OneGenerator(generator(self.seed, "grid"), number, slice(None))

    def samples(self, images: np.ndarray) -> Random:
        """The noise of these images of a sample set: x at t = 1, then of a sampler's steps."""
        return _GeneratorEach([generator(self.seed, "image", int(i)) for i in images])


class _OneGenerator:
    """Draws for `size` images from one generator, and gives those of `part`."""

    def __init__(self, random: torch.Generator, size: int, part: slice) -> None:
        self.random, self.size, self.part = random, size, part

    def normal(self, *shape: int) -> Tensor:
        return torch.randn((self.size, *shape), generator=self.random)[self.part]

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand((self.size, *shape), generator=self.random)[self.part]

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, (self.size, *shape), generator=self.random)[self.part]

    def permutation(self, number: int) -> Tensor:
        return torch.rand((self.size, number), generator=self.random).argsort(1)[self.part]


class _GeneratorEach:
    """Draws for each image from a generator of its own."""

    def __init__(self, randoms: Sequence[torch.Generator]) -> None:
        self.randoms = randoms

    def normal(self, *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=random) for random in self.randoms])
