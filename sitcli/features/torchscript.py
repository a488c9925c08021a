"""Feature extractors that the user brings as a TorchScript file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sitcli.errors import SitError
from sitcli.features.base import last_line
from sitcli.text import first_line


def load_torchscript(
    path: Path, device: torch.device, axes: tuple[str, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function uint8 (B, 3, S, S) -> float32 (B, ...), the TorchScript module in the file.

    axes: names of the axes of its result after the first, for errors.
    Raises SitError if the file is not a TorchScript module. The function raises SitError if the
    module fails or returns another number of axes or images.
    """
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise SitError(
            f"{path} is not a TorchScript module: {first_line(error)}",
            "write one with torch.jit.save(torch.jit.script(module), FILE)",
        ) from None

    def call(images: torch.Tensor) -> torch.Tensor:
        try:
            found = module(images.to(device))
        except Exception as error:
            raise SitError(
                f"{path} fails on uint8 images {tuple(images.shape)}: {last_line(error)}"
            ) from None
        fits = torch.is_tensor(found) and found.ndim == 1 + len(axes)
        if not fits or len(found) != len(images):
            kind = tuple(found.shape) if torch.is_tensor(found) else type(found).__name__
            shape = ", ".join(("images", *axes))
            raise SitError(f"{path} must return features ({shape}), but returned {kind}")
        return found.float()

    return call
