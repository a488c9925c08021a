"""Grids of images as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sitcli.storage.files import save_picture

if TYPE_CHECKING:
    from PIL import ImageFont

MIN_CELL = 64  # small images are enlarged to about this many pixels, by a whole factor


def save_grid(
    path: Path,
    images: np.ndarray,
    *,
    columns: int,
    row_labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    gap: int = 2,
) -> None:
    """Write images (N, H, W, 3) uint8 as one PNG, row by row, with `columns` images in a row.

    row_labels: texts to the left of the rows. captions: texts below the images, cut to their width.
    gap: pixels between images.
    Raises SitError if it cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    factor = max(1, round(MIN_CELL / images.shape[1]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    _, height, width, _ = images.shape
    rows = -(-len(images) // columns)
    font = ImageFont.load_default(max(11, min(18, height // 5)))
    small = ImageFont.load_default(max(10, min(14, height // 8)))
    margin = math.ceil(max((font.getlength(text) for text in row_labels), default=-8)) + 8
    below = sum(small.getmetrics()) if captions else 0
    step = height + below + gap
    size = (margin + columns * (width + gap) + gap, rows * step + gap)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        corner = (margin + gap + column * (width + gap), gap + row * step)
        canvas.paste(Image.fromarray(image), corner)
        if captions:
            place = (corner[0] + width // 2, corner[1] + height)
            draw.text(place, _cut(captions[i], small, width), fill="black", font=small, anchor="ma")
    for row, text in enumerate(row_labels):
        middle = gap + row * step + height // 2
        draw.text((4, middle), text, fill="black", font=font, anchor="lm")
    save_picture(canvas.save, path)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of it as is at most `width` pixels wide, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    return next(
        (part for n in range(len(text) - 1, 0, -1)
         if font.getlength(part := text[:n].rstrip() + "...") <= width),
        "",
    )  # fmt: skip
