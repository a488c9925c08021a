"""Grids of images as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sitcli.storage.files import save_picture

MIN_CELL = 64  # small images are enlarged to about this many pixels, by a whole factor


def save_grid(
    path: Path,
    images: np.ndarray,
    *,
    columns: int,
    row_labels: Sequence[str] | None = None,
    gap: int = 2,
) -> None:
    """Write images (N, H, W, 3) uint8 as one PNG, row by row, with `columns` images in a row.

    row_labels: texts to the left of the rows. gap: pixels between images.
    Raises SitError if it cannot be written.
    """
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
    save_picture(canvas.save, path)
