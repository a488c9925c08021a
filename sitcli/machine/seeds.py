"""Random streams: what is drawn for whom is a function of the seed and the item's number alone.

`Philox` gives the streams of every new run and sample set. What an older version began goes on with
`hashed_seeds.Hashed`. Both are a row of STREAMS, under the name that the artefact records.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, unique
from typing import Protocol

import numpy as np
import torch

from sitcli.core.philox import Draws
from sitcli.core.times import Random
from sitcli.machine.hashed_seeds import Hashed


@unique
class Stream(IntEnum):
    """What random numbers are for, and what their items are. A number never changes its meaning.

    The items of a training are its images in the order in which they are drawn, from 0 on through
    all epochs: the number of an image of a step is that of the images drawn before the step, plus
    its place in the step. Their draw 1 is the second one, after a rollback.
    """

    ORDER = 0  # of the images in training; epoch
    NOISE = 1  # eps; image of the training
    TIMES = 2  # t; image of the training
    LABEL_DROPS = 3  # image of the training
    FLIPS = 4  # image of the training
    POSTERIOR = 5  # of its latent; image of the training
    ROUTES = 6  # tokens that skip no block; image of the training
    GRIDS = 7  # the noise of training's grids; place in the grid
    SAMPLES = 8  # image of a sample set: draw 0 is x at t = 1, the others a sampler's steps
    LABELS = 9  # image of a sample set
    LIKELIHOOD_POSTERIOR = 10  # item of a store
    DEQUANTISATION = 11  # item of a store
    PROBES = 12  # of the divergence: draw k is probe k; item of a store
    BOUND = 13  # draw k is the noise of the chain's k-th term; item of a store
    STAND_INS = 14  # of the reference for samples; the number of its images


class Streams(Protocol):
    """The random streams of training and of sampling under one seed."""

    def order(self, epoch: int, number: int) -> np.ndarray:
        """The order of `number` images in an epoch, (number,) int64."""

    def step(
        self, step: int, first: int, size: int, part: slice, *, again: bool = False
    ) -> Callable[[Stream], Random]:
        """What a step draws for the images `part` of its global batch of `size`, by its stream.

        first: how many images were drawn before the step; again: other numbers, for a step that is
        repeated after a rollback.
        """

    def grid(self, number: int) -> Random:
        """The noise of the `number` images of training's grids."""

    def samples(self, images: np.ndarray) -> Random:
        """The noise of these images of a sample set: x at t = 1, then of a sampler's steps."""


class Philox:
    """The streams of `core.philox`: all of a number's place is its key and counter."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def draws(self, stream: Stream, items: np.ndarray, *, draw: int = 0) -> Draws:
        """The numbers of `items` (B,) from one stream, from draw number `draw` on."""
        return Draws(self.seed, stream, torch.as_tensor(items), draw=draw)

    def order(self, epoch: int, number: int) -> np.ndarray:
        """See `Streams`."""
        return self.draws(Stream.ORDER, np.array([epoch])).permutation(number)[0].numpy()

    def step(
        self, step: int, first: int, size: int, part: slice, *, again: bool = False
    ) -> Callable[[Stream], Random]:
        """See `Streams`."""
        images = np.arange(first, first + size)[part]
        return lambda stream: self.draws(stream, images, draw=int(again))

    def grid(self, number: int) -> Random:
        """See `Streams`."""
        return self.draws(Stream.GRIDS, np.arange(number))

    def samples(self, images: np.ndarray) -> Random:
        """See `Streams`."""
        return self.draws(Stream.SAMPLES, images)


# By the name that a checkpoint or a sample set records. Version 0.7 and earlier recorded none.
STREAMS: dict[str, Callable[[int], Streams]] = {"philox": Philox, "hashed": Hashed}
NEW, UNRECORDED = "philox", "hashed"
