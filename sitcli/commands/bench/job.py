"""The job of a network's benchmark: resolved settings, and a store to train from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sitcli.commands.bench.synthetic import temporary_folder, write_synthetic
from sitcli.commands.train.job import Job, prepare
from sitcli.machine.devices import resolve_device, tune_cpu
from sitcli.machine.world import World
from sitcli.settings.tools import BenchSettings
from sitcli.settings.train import TrainSettings

ITEMS = 512  # of the synthetic store


@dataclass(frozen=True)
class BenchJob:
    """The training job to measure on this machine, and the settings that asked for it."""

    settings: BenchSettings
    training: TrainSettings
    job: Job

    @property
    def batch(self) -> int:
        """Images per step."""
        return self.training.batch_size

    @property
    def device(self) -> torch.device:
        """The device that is measured."""
        return self.job.device

    def seconds(self, work: Callable[[], Any]) -> float:
        """Seconds of one call of work(), including its work on the device."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def sized(self, batch: int) -> BenchJob:
        """The same job with another batch size."""
        training = replace(self.training, batch_size=batch)
        return BenchJob(self.settings, training, prepare(training, World(0, 1)))


@contextlib.contextmanager
def prepared(settings: BenchSettings) -> Iterator[BenchJob]:
    """A job for the settings, on their store or on one of noise; its folder is removed at the end.

    Raises UsageError for settings that do not fit the store.
    """
    with temporary_folder(settings.dir) as name:
        store = settings.latents
        if store is None:
            store = Path(name) / "noise.h5"
            for _ in write_synthetic(store, ITEMS):
                pass
        device = resolve_device(settings.device)
        gpu = device.type == "cuda"
        training = TrainSettings(
            model=settings.model or ("SiT-XL/2" if gpu else "SiT-S/2"),
            batch_size=settings.batch_size or (64 if gpu else 16),
            latents=[store],
            out=Path(name) / "run",
            steps=10**6,  # more than any bench takes
            sample_every=0,
            compile=settings.compile,
            tread=settings.tread,
            device=settings.device,
            precision=settings.precision,
        )
        tune_cpu(device)
        yield BenchJob(settings, training, prepare(training, World(0, 1)))
