"""Turns the text of an option into a value, or into an error that names the option."""

from __future__ import annotations

import math
import re
from typing import Any

from sitcli import names
from sitcli.core.times import natural_shift
from sitcli.errors import UsageError
from sitcli.model.config import PRESETS, TransformerConfig, parse_model


def parse_model_name(model: str) -> tuple[str, str, int]:
    """'SiT-XL/2' -> ('SiT', 'XL', 2). Raises UsageError for anything else."""
    try:
        return parse_model(model)
    except ValueError as error:
        sizes = ", ".join(names.SIZES)
        raise UsageError(
            str(error), f"use SiT-SIZE/PATCH or DiT-SIZE/PATCH with SIZE one of {sizes}"
        ) from None


def default_model(side: int, *, small: bool) -> str:
    """The default --model for latents of `side`: SiT-XL/2, or SiT-XL/1 if `side` is odd.

    small (on a CPU): SiT-Ti with the finest patch that leaves at most 8 x 8 tokens.
    """
    if not small:
        return "SiT-XL/2" if side % 2 == 0 else "SiT-XL/1"
    patch = next(p for p in range(1, side + 1) if side % p == 0 and side // p <= 8)
    return f"SiT-Ti/{patch}"


def transformer_config(
    model: str,
    *,
    input_size: int,
    channels: int,
    out_channels: int,
    num_classes: int,
    patch: int | None = None,
    depth: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    block: str = TransformerConfig.block,
    **parts: Any,
) -> TransformerConfig:
    """The preset called `model` with its overrides; parts: further fields of the config.

    Raises UsageError for an unknown model and for sizes that do not fit together.
    """
    _, size, preset_patch = parse_model_name(model)
    try:
        preset_depth, preset_width, preset_heads = PRESETS[size]
        return TransformerConfig(
            input_size=input_size,
            patch=patch or preset_patch,
            channels=channels,
            out_channels=out_channels,
            width=width or preset_width,
            depth=depth or preset_depth,
            heads=heads or preset_heads,
            num_classes=num_classes,
            block=block,
            **parts,
        )
    except ValueError as error:
        raise UsageError(str(error), "change --model, --patch, --width or --heads") from None


MOST_SHIFT = 100.0


def parse_shift(text: str | None, shape: tuple[int, int, int]) -> float:
    """--t-shift as a number, for latents of `shape` (C, h, w). Raises UsageError for other text."""
    if text is None:
        return 1.0
    if text == "auto":
        return natural_shift(shape)
    try:
        shift = float(text)
    except ValueError:
        shift = math.nan
    if not 1 / MOST_SHIFT <= shift <= MOST_SHIFT:
        raise UsageError(
            f"--t-shift {text} is not a time shift",
            f"use auto, or a number from {1 / MOST_SHIFT:g} to {MOST_SHIFT:g}",
        )
    return shift


def parse_checkpoint_blocks(text: str) -> int:
    """'none' -> 0, 'all' -> 1, 'every-3' -> 3: a Transformer's checkpoint_every.

    Raises ValueError for anything else.
    """
    if text in ("none", "all"):
        return int(text == "all")
    match = re.fullmatch(r"every-([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"'{text}' is not one of none, all, every-2, every-3, ...")
    return int(match[1])


def parse_interval(text: str) -> tuple[float, float]:
    """'0,0.7' -> (0.0, 0.7). Raises UsageError unless 0 <= LO < HI <= 1."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not 0 <= low < high <= 1:
        raise UsageError(
            f"--cfg-interval {text}: LO,HI are times t with 0 <= LO < HI <= 1",
            "e.g. --cfg-interval 0,0.7",
        )
    return low, high
