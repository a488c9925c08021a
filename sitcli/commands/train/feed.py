"""The order of the images, a step's random numbers, and batches prepared ahead in a thread."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sitcli.core.times import Random
from sitcli.machine.seeds import Stream, Streams

T = TypeVar("T")


class Order:
    """Every image once an epoch, in an order that is a function of (seed, epoch).

    began: (images drawn, epochs begun) before these images, where a run had others before.
    """

    def __init__(
        self, num_items: int, streams: Streams, *, began: tuple[int, int] = (0, 0)
    ) -> None:
        self.num_items, self.streams, self.began = num_items, streams, began
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def epochs(self, images: int) -> float:
        """How many epochs have passed when `images` images were drawn."""
        first, epochs = self.began
        return epochs + (images - first) / self.num_items

    def batch(self, first: int, size: int) -> np.ndarray:
        """Items of positions first .. first + size in the endless sequence of epochs."""
        start, begun = self.began
        epochs, places = np.divmod(np.arange(first, first + size) - start, self.num_items)
        epochs += begun
        items = np.empty(size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            items[here] = self._permutation(int(epoch))[places[here]]
        return items

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.streams.order(epoch, self.num_items)
        return self._order


class StepRandomness(NamedTuple):
    """The random part of one step, for B images of its global batch."""

    items: np.ndarray  #  (B,) which images
    flip: np.ndarray  #   (B,) bool
    hide: Tensor  #       (B,) bool: train without the label
    t: Tensor  #          (B,)
    eps: Tensor  #        (B, C, h, w)
    posterior: Tensor | None  # (B, C, h, w), where the latents have a posterior to draw from
    tokens_kept: Tensor | None  # (B, K) int64, the tokens that skip no block, where others do

    def part(self, part: slice) -> StepRandomness:
        """The same for some of the images."""
        return StepRandomness(*(values if values is None else values[part] for values in self))


def randomness_of_step(
    random: Callable[[Stream], Random],
    items: np.ndarray,
    *,
    shape: tuple[int, int, int],
    draw_times: Callable[[Random], Tensor],
    label_dropout: float,
    flip: bool,
    posterior: bool,
    tokens: int = 0,
    kept: int = 0,
) -> StepRandomness:
    """The random numbers of a step for the images `items` (B,), latents of `shape` (C, h, w).

    random: of these images, see `Streams.step`; draw_times(random): the process's; label_dropout:
    chance to hide a label; flip: mirror half of the images; posterior: draw noise for the latents'
    posterior; kept: how many of an image's `tokens` skip no block, 0 if none skips any.
    The order of the calls is part of the hashed streams.
    """
    eps = random(Stream.NOISE).normal(*shape)
    t = draw_times(random(Stream.TIMES))
    hide = random(Stream.LABEL_DROPS).uniform() < label_dropout
    mirror = random(Stream.FLIPS).uniform() < (0.5 if flip else 0.0)
    noise = random(Stream.POSTERIOR).normal(*shape) if posterior else None
    tokens_kept = None
    if kept:
        tokens_kept = random(Stream.ROUTES).permutation(tokens)[:, :kept].sort(1).values
    return StepRandomness(items, mirror.numpy(), hide, t, eps, noise, tokens_kept)


class Feed(Generic[T]):
    """Calls prepare(step) for the steps first .. last - 1 in a thread, ahead of `get`.

    At most `ahead` results wait. An exception of `prepare` is raised by `get` at that step. Call
    `close` when done; it is also called when the interpreter ends.
    """

    def __init__(self, prepare: Callable[[int], T], first: int, last: int, *, ahead: int = 2):
        self._next, self._last = first, last
        self._room = threading.Semaphore(ahead)
        self._made: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._failed: BaseException | None = None
        self._closed = False
        # A daemon: a caller that forgets to close must not keep the process alive.
        self._thread = threading.Thread(
            target=self._run, args=(prepare,), name="sit-feed", daemon=True
        )
        threads, self._single = torch.get_num_threads(), threading.Event()
        self._thread.start()
        # torch takes the number that one thread sets as the default of later threads: set it back.
        self._single.wait()
        torch.set_num_threads(threads)
        # A thread inside torch while the interpreter is taken down can abort the process.
        atexit.register(self.close)

    def get(self, step: int) -> T:
        """The result of prepare(step). Raises ValueError unless steps come in order, each once."""
        if self._failed is not None:
            raise self._failed
        if step != self._next or step >= self._last or self._closed:
            raise ValueError(f"step {step} of a feed that is at {self._next} of {self._last}")
        made, self._failed = self._made.get()
        if self._failed is not None:
            raise self._failed
        self._next += 1
        self._room.release()
        return made

    def close(self) -> None:
        """End the thread, after the step it is preparing; may be called twice."""
        self._closed = True
        self._room.release()
        if self._thread is not threading.current_thread():
            self._thread.join()
        atexit.unregister(self.close)

    def _run(self, prepare: Callable[[int], T]) -> None:
        # Operations as small as these take twice as long on several threads, and training needs
        # the threads.
        torch.set_num_threads(1)
        self._single.set()
        for step in range(self._next, self._last):
            self._room.acquire()
            if self._closed:
                return
            try:
                self._made.put((prepare(step), None))
            except BaseException as error:
                self._made.put((None, error))
                return
