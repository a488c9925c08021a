"""Pictures for people: grids of images and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sitcli.errors import SitError
from sitcli.io.files import replacing

MIN_CELL = 64  # small images are enlarged to about this many pixels, by a whole factor


def save_grid(
    path: Path,
    images: np.ndarray,
    *,
    columns: int,
    row_labels: Sequence[str] | None = None,
    gap: int = 2,
) -> None:
    """Write images (N, H, W, 3) uint8 as a PNG, row by row; row_labels stand left of their row."""
    from PIL import Image, ImageDraw, ImageFont

    factor = max(1, round(MIN_CELL / images.shape[1]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    _, height, width, _ = images.shape
    rows = -(-len(images) // columns)
    labels = list(row_labels or [])
    font = ImageFont.load_default(max(11, min(18, height // 5)))
    margin = math.ceil(max((font.getlength(text) for text in labels), default=-8)) + 8
    size = (margin + columns * (width + gap) + gap, rows * (height + gap) + gap)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        corner = (margin + gap + column * (width + gap), gap + row * (height + gap))
        canvas.paste(Image.fromarray(image), corner)
    for row, text in enumerate(labels):
        middle = gap + row * (height + gap) + height // 2
        draw.text((4, middle), text, fill="black", font=font, anchor="lm")
    _save(canvas.save, path)


def save_curve(path: Path, steps: Sequence[float], values: Sequence[float], *, label: str) -> None:
    """Write a curve as a PNG, with a running mean over a fiftieth of its points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, values, color="#9bb8d3", linewidth=0.8)
    window = max(1, len(values) // 50)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color="#1f4e79", linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    _save(figure.savefig, path)


def _save(save, path: Path) -> None:
    """A reader never sees half a picture. SitError if it cannot be written."""
    if path.is_dir():
        raise SitError(f"cannot write {path}: it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as temporary:
            save(temporary, format="png")
    except OSError as error:
        raise SitError(f"cannot write {path}: {error.strerror or error}") from None
