"""The files beside a sample set: its grid, the path, PNG files and the npz."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from sitcli.autoencoders.base import Autoencoder, decode_latents
from sitcli.commands.sample.job import Job
from sitcli.images.grid import save_grid
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.storage.files import replacing

GRID_ROWS, GRID_COLUMNS = 10, 10
PATH_ROWS, PATH_COLUMNS = 6, 10


def save_path(
    samples: SampleSet, job: Job, autoencoder: Autoencoder, frames: list[tuple[float, Tensor]]
) -> None:
    """Write path.png: one image per row, x_t decoded at about equally spaced times from t = 1.

    frames: (t, x_t) of the first images, x_t (B, C, h, w).
    """
    picks = np.unique(np.linspace(0, len(frames) - 1, PATH_COLUMNS).round().astype(int))
    columns = [
        decode_latents(autoencoder, frames[i][1], job.checkpoint.scaling).numpy() for i in picks
    ]
    images = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    save_grid(samples.beside("path.png"), images, columns=len(picks))


def save_pictures(samples: SampleSet, job: Job) -> None:
    """Write grid.png and the files that were asked for; nothing if the set has latents only."""
    if samples.images is None:
        return
    class_names = samples.meta["class_names"]
    images, columns, labels = _grid(samples, class_names)
    save_grid(samples.beside("grid.png"), images, columns=columns, row_labels=labels)
    save_files(samples, job.settings)


def save_files(samples: SampleSet, settings: SampleSettings) -> None:
    """Write samples.npz and png/ if they were asked for."""
    if settings.npz:
        path = samples.beside("samples.npz")
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, arr_0=samples.images)
    if settings.png:
        from PIL import Image

        folder = samples.beside("png")
        folder.mkdir(exist_ok=True)
        for i, image in enumerate(samples.images):
            path = folder / f"{i:06d}.png"
            if not path.exists():
                with replacing(path, durable=False) as temporary:
                    Image.fromarray(image).save(temporary, format="png")


def _grid(samples: SampleSet, class_names: list[str]) -> tuple[np.ndarray, int, list[str] | None]:
    """Images, columns and row labels of the grid; one class per row if a class has several."""
    if not class_names or np.bincount(samples.labels).max() < 2:
        shown = min(samples.num, GRID_ROWS * GRID_COLUMNS)
        return samples.images[:shown], max(1, math.isqrt(shown)), None
    classes = list(dict.fromkeys(samples.labels.tolist()))[:GRID_ROWS]
    members = [np.flatnonzero(samples.labels == c)[:GRID_COLUMNS] for c in classes]
    columns = max(map(len, members))
    blank = np.full_like(samples.images[0], 255)
    cells = [
        samples.images[row[i]] if i < len(row) else blank for row in members for i in range(columns)
    ]
    return np.stack(cells), columns, [class_names[c] for c in classes]
