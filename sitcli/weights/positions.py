"""Position embeddings in weight files, compared with the sin-cos grid they should be."""

from __future__ import annotations

import re

from torch import Tensor

from sitcli.errors import UsageError
from sitcli.weights.official import infer_grid

POSITIONS = 1e-6  # largest difference between a given and a recomputed embedding taken as equal


def equal_to_rounding(given: Tensor, computed: Tensor) -> bool:
    """Whether two position embeddings have one shape and differ by at most POSITIONS."""
    return given.shape == computed.shape and bool((given - computed).abs().max() <= POSITIONS)


def grid_or_none(given: Tensor) -> tuple[int, int] | None:
    """Rows and columns of a position embedding (1, T, d), None if it fits no grid."""
    try:
        return infer_grid(given)
    except ValueError:
        return None


def grid_of(text: str, pixels: int) -> tuple[int, int]:
    """'512' or '256x512' (height x width in pixels) -> rows and columns of tokens.

    pixels: the side of a token. Raises UsageError for any other text, or a size that is not a
    multiple of the token's side.
    """
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if match is None:
        raise UsageError(
            f"--image-size {text} is not a size", "give 512, or HEIGHTxWIDTH as in 256x512"
        )
    height, width = int(match[1]), int(match[2] or match[1])
    if height % pixels or width % pixels or not height * width:
        raise UsageError(
            f"--image-size {text}: a token is {pixels} x {pixels} pixels, and both sides must be "
            f"multiples of {pixels}",
            f"use --image-size {max(1, round(height / pixels)) * pixels}",
        )
    return height // pixels, width // pixels


def image_size_of(state: dict[str, Tensor], downsample: int) -> tuple[int, int] | None:
    """(height, width) of the images by the file's own positions, None if it has none.

    downsample: pixels per latent, each way.
    """
    patches, given = state.get("x_embedder.proj.weight"), state.get("pos_embed")
    if patches is None or patches.ndim != 4 or given is None or given.ndim != 3:
        return None
    if given.shape[2] != patches.shape[0] or given.shape[2] % 4:
        return None
    grid = grid_or_none(given)
    return grid and tuple(side * patches.shape[2] * downsample for side in grid)
