"""Position embeddings in weight files, compared with the sin-cos grid they should be."""

from __future__ import annotations

import re

from torch import Tensor

from sitcli.errors import UsageError
from sitcli.weights.official import infer_grid

POSITIONS = 1e-6  # how far a position embedding may be from the recomputed one and count as it


def near(given: Tensor, computed: Tensor) -> bool:
    return given.shape == computed.shape and bool((given - computed).abs().max() <= POSITIONS)


def grid_or_none(given: Tensor) -> tuple[int, int] | None:
    try:
        return infer_grid(given)
    except ValueError:
        return None


def grid_of(text: str, pixels: int) -> tuple[int, int]:
    """'512' or '256x512' (height first) pixels -> rows and columns of tokens of `pixels` each."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if match is None:
        raise UsageError(f"--image-size {text} is no size", "512, or HEIGHTxWIDTH: 256x512")
    height, width = int(match[1]), int(match[2] or match[1])
    if height % pixels or width % pixels or not height * width:
        raise UsageError(
            f"--image-size {text}: a token is {pixels} x {pixels} pixels, and both sides must be "
            "multiples of it",
            f"--image-size {max(1, round(height / pixels)) * pixels}",
        )
    return height // pixels, width // pixels
