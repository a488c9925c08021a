"""Numbers, shapes and errors as text for people."""

from __future__ import annotations

from collections.abc import Sequence


def format_bytes(count: float) -> str:
    """1234567 -> '1.23 MB'."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def count(number: int, noun: str, plural: str = "") -> str:
    """(1, 'class', 'classes') -> '1 class'; the plural is the noun with an s unless given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def format_shape(shape: Sequence[int]) -> str:
    """(4, 32, 32) -> '4 x 32 x 32'."""
    return " x ".join(map(str, shape))


def first_line(error: Exception) -> str:
    """The first line of an error's text that is not blank, or its class if it has no text."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), type(error).__name__)


def damage(error: Exception) -> str:
    """Why a file cannot be read, by a library's error: cut short or damaged, or its first line."""
    text = str(error)
    if any(sign in text for sign in SIGNS_OF_DAMAGE):
        return "it is cut short or damaged"
    return first_line(error)


# What h5py, safetensors and torch say of a file whose end is missing, or whose bytes are not its
# own.
SIGNS_OF_DAMAGE = (
    "truncated file", "deserializing header", "PytorchStreamReader",
    "pop from empty list", "invalid load key", "central directory",
)  # fmt: skip


def spread(seconds: Sequence[float]) -> str:
    """Each rank's seconds a step -> 'rank 3 slowest: 0.254 s a step, 21% over rank 0'."""
    slowest, fastest = (seconds.index(pick(seconds)) for pick in (max, min))
    over = seconds[slowest] / max(seconds[fastest], 1e-9) - 1
    if over < 0.01:
        return f"all ranks {seconds[slowest]:.3g} s a step"
    excess = f"{over:.0%} over" if over < 9.95 else f"{over + 1:.0f} times"
    return f"rank {slowest} slowest: {seconds[slowest]:.3g} s a step, {excess} rank {fastest}"
