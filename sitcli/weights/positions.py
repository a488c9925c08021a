"""Position embeddings in weight files, compared with the sin-cos grid they should be."""

from __future__ import annotations

import re

from torch import Tensor

from sitcli.errors import UsageError
from sitcli.model.embed import position_embedding
from sitcli.text import format_shape
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


def settle_positions(
    path: object,
    state: dict[str, Tensor],
    *,
    image_size: str | None,
    stated: int | None,
    downsample: int,
) -> tuple[list[str], list[str]]:
    """Keep the position embedding in `state`, or recompute it for --image-size in place.

    path: the file, for errors; image_size: --image-size; stated: the side of the images by the
    trainer's arguments, which counts where the file has no positions; downsample: pixels per
    latent, each way. Returns notes and warnings.
    Raises UsageError if there are no positions, or if learned ones cannot be recomputed.
    """
    patches, given = state.get("x_embedder.proj.weight"), state.get("pos_embed")
    if patches is None or patches.ndim != 4 or not patches.shape[2]:
        return [], []  # `config_of` raises the error, where it checks the keys
    width, patch = patches.shape[0], patches.shape[2]
    whole = given is not None and given.ndim == 3 and given.shape[2] == width
    if image_size is None:
        if given is not None:
            return [], _unusual(given) if whole else []
        if not stated or stated % (patch * downsample):
            raise UsageError(
                f"{path} has no pos_embed, so that the size of its images is unknown",
                "add --image-size, e.g. --image-size 256",
            )
    grid = grid_of(image_size or str(stated), patch * downsample)
    if width % 4:
        return [], []
    computed, note = position_embedding(width, *grid), f"{format_shape(grid)} tokens"
    if whole:
        old = grid_or_none(given)
        if old == grid:
            return [], _unusual(given)
        if old is None or not equal_to_rounding(given, position_embedding(width, *old)):
            raise UsageError(
                f"--image-size {image_size}: the positions in {path} are learned, and cannot be "
                "recomputed for another size",
                "remove --image-size",
            )
        note += f" instead of {format_shape(old)}"
    state["pos_embed"] = computed
    return [f"positions recomputed: {note}"], []


def _unusual(given: Tensor) -> list[str]:
    """A warning if these positions (1, T, d) are not the standard ones."""
    grid = grid_or_none(given)
    if grid is None or given.shape[2] % 4:
        return []
    if equal_to_rounding(given, position_embedding(given.shape[2], *grid)):
        return []
    return ["the position embedding is not the standard one, and is kept as it is"]
