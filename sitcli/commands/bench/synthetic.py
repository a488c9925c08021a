"""Latent stores of random numbers, for benchmarks without data."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sitcli.errors import SitError
from sitcli.events import Event, Progress
from sitcli.latents.layout import create_store, row_checksums
from sitcli.latents.scaling import Scaling
from sitcli.storage.rows import Rows

SHAPE = (8, 32, 32)  # a row of a synthetic store: SD's posterior of a 256 x 256 image
WRITE_ROWS = 1024


@contextlib.contextmanager
def temporary_folder(parent: Path | None) -> Iterator[str]:
    """A folder within `parent` that is removed at the end. Raises SitError if it cannot be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="sit-bench-", dir=parent)
    except OSError as error:
        raise SitError(
            f"cannot write in {parent}: {error.strerror}", "name another --dir"
        ) from None
    with folder as name:
        yield name


def write_synthetic(path: Path, items: int) -> Iterator[Event]:
    """Write a store of `items` rows of noise with flips, shaped like SD's latents of ImageNet."""
    labels = np.arange(items) % 1000
    create_store(
        path,
        paths=[f"{number}.png" for number in range(items)],
        labels=labels,
        class_names=[f"{number:03d}" for number in range(1000)],
        row_shape=SHAPE,
        kind="moments",
        flips=True,
        autoencoder=dict(name="synthetic", hash="0" * 64, shift=0.0),
        autoencoder_arrays={},
        scaling=Scaling(0.18215),
        image_size=256,
        crop="adm",
        source="synthetic",
        source_fingerprint=str(items),
        vae="synthetic",
        batch_size=1,
        precision="fp32",
    )
    noise = np.random.default_rng(0).random((WRITE_ROWS, *SHAPE), np.float32).astype(np.float16)
    crc = row_checksums(noise, noise)
    with Rows(path, writable=True) as file:
        for start in range(0, items, WRITE_ROWS):
            yield Progress(done=start, total=items, text="writing the store")
            numbers = np.arange(start, min(start + WRITE_ROWS, items))
            rows = noise[: len(numbers)]
            file.write(numbers, latents=rows, latents_flipped=rows, crc32=crc[: len(rows)])
        file.set_attrs(complete=True)
