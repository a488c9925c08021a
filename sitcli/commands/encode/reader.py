"""Reads and crops images ahead of the autoencoder, in worker processes."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator

import numpy as np
import torch

from sitcli import names
from sitcli.errors import SitError
from sitcli.images.decode import to_square
from sitcli.images.place import BrokenImage
from sitcli.images.source import Source
from sitcli.machine.world import processors_each
from sitcli.settings.encode import EncodeSettings

PCA_IMAGES, PCA_BATCH = 5000, 64


def read_some(
    settings: EncodeSettings, source: Source, indices: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield those of the images `indices` that can be read, as uint8 (B, S, S, 3) arrays."""
    batches = [indices[i : i + PCA_BATCH] for i in range(0, len(indices), PCA_BATCH)]
    for pixels, problems in read_ahead(settings, source, batches):
        readable = pixels.numpy()[[not problem for problem in problems]]
        if len(readable):
            yield readable


def read_ahead(
    settings: EncodeSettings,
    source: Source,
    batches: list[np.ndarray],
    *,
    pin_memory: bool = False,
) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Read batches of image numbers in order, in worker processes and ahead of the caller.

    Yields uint8 (B, S, S, 3) and a problem per image, "" if there is none. A broken image is black.
    Raises SitError if a worker process is killed.
    """
    workers = settings.workers
    if workers is None:
        workers = min(8, processors_each() - 1)
    loader = torch.utils.data.DataLoader(
        PictureBatches(source, settings.image_size, settings.crop, batches),
        batch_size=None,
        shuffle=False,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=_leave_interrupts_to_parent,
    )
    try:
        yield from loader
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise SitError(
            "a process that reads images was killed; memory, or shared memory, is probably short",
            "type the same command with --workers 0: it goes on",
        ) from None


def _leave_interrupts_to_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclasses.dataclass(frozen=True)
class PictureBatches(torch.utils.data.Dataset):
    """Prepared images by batch number, for worker processes."""

    source: Source
    size: int
    crop: names.Crop
    batches: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, list[str]]:
        batch = self.batches[number]
        pixels = np.zeros((len(batch), self.size, self.size, 3), np.uint8)
        problems = [""] * len(batch)
        for place, index in enumerate(batch):
            try:
                pixels[place] = to_square(self.source.read(index), self.size, self.crop)
            except BrokenImage as error:
                problems[place] = str(error)
        return torch.from_numpy(pixels), problems
