"""The batches of a step, on the CPU: functions of the seed and the step alone."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sitcli.commands.train.feed import StepRandomness, randomness_of_step
from sitcli.commands.train.job import Job
from sitcli.commands.train.recipe import make_times
from sitcli.core.objective import to_tokens
from sitcli.machine.world import World


class Batch(NamedTuple):
    """A micro-batch: data x_* (b, C, h, w), labels y (b,), times t (b,), noise eps (b, C, h, w).

    tokens_kept: (b, K) tokens that skip no block, None if no token skips any; features: (b, T, D)
    for REPA.
    """

    x: Tensor
    y: Tensor
    t: Tensor
    eps: Tensor
    tokens_kept: Tensor | None
    features: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """This batch on `device`, without waiting for the copy."""
        return Batch(*(p if p is None else p.to(device, non_blocking=True) for p in self))

    def pinned(self) -> Batch:
        """This batch in pinned memory: a copy from there to a GPU does not wait for the GPU."""
        return Batch(*(p if p is None else p.pin_memory() for p in self))


class Batches:
    """This rank's micro-batches of every step."""

    def __init__(self, job: Job, world: World) -> None:
        self.job, self.world = job, world
        self.order = job.order
        self.labels = torch.from_numpy(job.store.labels)

    def of_step(self, step: int) -> list[Batch]:
        """The micro-batches of step `step` (from 0), as many as --accumulate says."""
        job, s = self.job, self.job.settings
        mine = self._draw(step)
        micro = len(mine.items) // s.accumulate
        batches = []
        for start in range(0, len(mine.items), micro):
            draw = mine.part(slice(start, start + micro))
            x = job.store.batch(draw.items, flip=draw.flip, noise=draw.posterior)
            y = self.labels[draw.items].masked_fill(draw.hide, job.config.null_class)
            features = None
            if job.extras.repa:
                values = job.store.features(draw.items, flip=draw.flip)
                features = to_tokens(torch.from_numpy(values).float(), job.config.grid)
            batch = Batch(x, y, draw.t, draw.eps, draw.tokens_kept, features)
            batches.append(batch.pinned() if job.device.type == "cuda" else batch)
        return batches

    def _draw(self, step: int) -> StepRandomness:
        """The random numbers of this rank's images of the step."""
        s, store = self.job.settings, self.job.store
        mine, first = self.world.slice(s.batch_size), self.job.images_at(step)
        again = any(first <= step < last for first, last in self.job.redrawn)
        return randomness_of_step(
            self.job.streams.step(step, first, s.batch_size, mine, again=again),
            self.order.batch(first, s.batch_size)[mine],
            shape=store.latent_shape,
            draw_times=partial(self.job.process.draw_times, times=make_times(s, step)),
            label_dropout=s.label_dropout if store.num_classes else 1.0,
            flip=s.flip,
            posterior=store.kind == "moments" and s.posterior == "sample",
            tokens=self.job.config.tokens,
            kept=self.job.kept_tokens,
        )
