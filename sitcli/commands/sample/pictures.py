"""The files beside a sample set: its grid, the path, PNG files and the npz."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from torch import Tensor

from sitcli.autoencoders.base import Autoencoder, decode_latents
from sitcli.commands.sample.job import Job
from sitcli.images.class_names import in_file_name, titles
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
    names = titles(samples.meta["class_names"])
    images, columns, texts = _grid(samples, names)
    save_grid(samples.beside("grid.png"), images, columns=columns, **texts)
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
        for name, image in zip(_file_names(samples, folder), samples.images, strict=True):
            path = folder / name
            if not path.exists():
                with replacing(path, durable=False) as temporary:
                    Image.fromarray(image).save(temporary, format="png")


def _file_names(samples: SampleSet, folder: Path) -> list[str]:
    """000123_golden-retriever.png for each image, 000123.png without names of classes.

    A folder that an earlier version began goes on without.
    """
    class_names = samples.meta.get("class_names") or []
    if any(re.fullmatch(r"\d{6,}\.png", path.name) for path in folder.iterdir()):
        class_names = []
    endings = [f"_{in_file_name(name) or i}" for i, name in enumerate(titles(class_names))]
    return [
        f"{i:06d}{endings[label] if label < len(endings) else ''}.png"
        for i, label in enumerate(samples.labels)
    ]


def _grid(samples: SampleSet, class_names: list[str]) -> tuple[np.ndarray, int, dict[str, list]]:
    """Images and columns of the grid, and its texts as `save_grid` takes them.

    It has one class per row if a class has several images, else the names below the images.
    """
    if not class_names or np.bincount(samples.labels).max() < 2:
        shown = min(samples.num, GRID_ROWS * GRID_COLUMNS)
        captions = [class_names[c] for c in samples.labels[:shown]] if class_names else []
        return samples.images[:shown], max(1, math.isqrt(shown)), dict(captions=captions)
    classes = list(dict.fromkeys(samples.labels.tolist()))[:GRID_ROWS]
    members = [np.flatnonzero(samples.labels == c)[:GRID_COLUMNS] for c in classes]
    columns = max(map(len, members))
    blank = np.full_like(samples.images[0], 255)
    cells = [
        samples.images[row[i]] if i < len(row) else blank for row in members for i in range(columns)
    ]
    return np.stack(cells), columns, dict(row_labels=[class_names[c] for c in classes])
