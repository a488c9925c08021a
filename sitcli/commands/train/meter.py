"""Measurements of training steps: losses, the loss over t, seconds; and NotFinite."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sitcli.core.wt import LossCurve
from sitcli.errors import SitError
from sitcli.machine.world import World

LOSS_BINS = 20  # of the velocity loss over t
LOSS_MEMORY = 0.999  # its decay per step


class NotFinite(SitError):
    """The loss of `step` was not finite; every rank raises it."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the loss was not finite at step {step}",
            "go on with a lower --lr, --clip 1, or --precision fp32, under another --out",
            shared=True,
        )
        self.step = step


class Meter:
    """Sums over the steps since the last log line, and the velocity loss over t.

    Kept on the device so that no step waits for the host; saved with the checkpoint.
    """

    def __init__(self, device: torch.device, terms: tuple[str, ...] = ()) -> None:
        self.loss = torch.zeros((), device=device)
        self.terms = {name: torch.zeros((), device=device) for name in terms}
        self.total = torch.zeros((), device=device)  # of the step, with the terms
        self.steps = 0
        self.bad_step = torch.full((), -1, dtype=torch.long, device=device)
        self.sums = torch.zeros(LOSS_BINS, device=device)
        self.counts = torch.zeros(LOSS_BINS, device=device)

    def add(self, loss: Tensor, terms: dict[str, Tensor], total: Tensor, *, parts: int) -> None:
        """One of `parts` micro-batches: its mean loss, the terms beside it, and their sum."""
        self.loss += loss.detach() / parts
        self.total += total.detach() / parts
        for name, term in terms.items():
            self.terms[name] += term.detach().mean() / parts

    def add_velocity(self, t: Tensor, velocity: Tensor) -> None:
        """Per-sample velocity losses (b,) at times t (b,)."""
        bins = (t * LOSS_BINS).long().clamp(max=LOSS_BINS - 1)
        self.sums.index_add_(0, bins, velocity)
        self.counts.index_add_(0, bins, torch.ones_like(velocity))

    def end_step(self, step: int) -> None:
        """Count a step: note a loss that is not finite, and let the sums over t decay."""
        self.steps += 1
        first = (self.bad_step < 0) & ~torch.isfinite(self.total)
        self.total.zero_()
        self.bad_step = torch.where(first, step, self.bad_step)
        self.sums *= LOSS_MEMORY
        self.counts *= LOSS_MEMORY

    def reduced(self, world: World) -> dict[str, Any]:
        """The sums over all ranks, as plain numbers; every rank must call it."""
        means = torch.stack([self.loss, *self.terms.values()]) / world.size
        packed = torch.cat([self.sums, self.counts, means])
        bad = self.bad_step.clone()
        if world.size > 1:
            dist.all_reduce(packed)
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        sums, counts, (loss, *terms) = packed.cpu().split([LOSS_BINS, LOSS_BINS, len(means)])
        return dict(
            loss_sum=float(loss),
            term_sums=dict(zip(self.terms, map(float, terms), strict=True)),
            steps=self.steps,
            bad_step=int(bad),
            sums=sums.tolist(),
            counts=counts.tolist(),
        )

    @property
    def loss_curve(self) -> LossCurve | None:
        """The velocity loss over t of this rank's images, None before the first of them."""
        counts = self.counts.tolist()
        return LossCurve.from_bins(self.sums.tolist(), counts) if any(counts) else None

    def checked(self, world: World) -> dict[str, Any]:
        """The sums over all ranks, as plain numbers; every rank must call it.

        Raises NotFinite if a loss was not finite.
        """
        state = self.reduced(world)
        if state["bad_step"] >= 0:
            raise NotFinite(state["bad_step"])
        return state

    def reset(self) -> None:
        """Set the sums of the log line to zero, and keep those over t."""
        self.loss.zero_()
        for term in self.terms.values():
            term.zero_()
        self.steps = 0

    def load(self, state: dict[str, Any], world: World) -> None:
        """Restore the state that `reduced` returned; the sums over t go to rank 0 alone."""
        self.loss.fill_(state["loss_sum"])
        for name, value in state.get("term_sums", {}).items():
            self.terms[name].fill_(value)
        self.steps = state["steps"]
        if world.rank == 0:
            self.sums.copy_(torch.tensor(state["sums"]))
            self.counts.copy_(torch.tensor(state["counts"]))


class Stopwatch:
    """Seconds of a step before this rank meets the others: waiting for data, and forward.

    On a GPU the forward pass is timed by events, without waiting for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.steps, self.data, self.forward = 0, 0.0, 0.0
        self._began = 0.0
        self._events: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Begin timing a forward pass."""
        if self.cuda:
            self._events.append(tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)))
            self._events[-1][0].record()
        self._began = time.perf_counter()

    def stop(self) -> None:
        """End timing a forward pass."""
        if self.cuda:
            self._events[-1][1].record()
        else:
            self.forward += time.perf_counter() - self._began

    def read(self) -> tuple[float, float]:
        """(data, forward) seconds per step since the last reading."""
        if self.cuda:
            torch.cuda.synchronize()
            self.forward = sum(first.elapsed_time(last) for first, last in self._events) / 1e3
            self._events.clear()
        steps = max(1, self.steps)
        seconds = self.data / steps, self.forward / steps
        self.steps, self.data, self.forward = 0, 0.0, 0.0
        return seconds
