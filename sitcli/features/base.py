"""What an extractor gives, and which of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

INCEPTION_HASH = "6726825d"  # first digits of the file's sha256, as torch.hub tags its files


def last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which features: `inception`, `dinov2`, `pixels` or a TorchScript file's name, and their hash.

    hash: sha256 of the weights' file, empty for pixels, which have none.
    """

    name: str
    path: Path | None
    hash: str

    @property
    def official(self) -> bool:
        """Whether figures made with them may be called FID, sFID, KID and IS."""
        return self.name == "inception" and self.hash.startswith(INCEPTION_HASH)

    @property
    def tag(self) -> str:
        """`inception:1a2b3c4d`, `pixels`."""
        return f"{self.name}:{self.hash[:8]}" if self.hash else self.name

    def label(self, metric: str) -> str:
        """What to call a figure: FID and so on, or FD[pixels] for what is not quite that."""
        if self.official:
            return metric
        return f"{dict(FID='FD', sFID='sFD', KID='KD').get(metric, metric)}[{self.tag}]"

    @property
    def layers(self) -> tuple[str, ...]:
        """pool: one vector an image; spatial: InceptionV3's mixed_6 map, for sFID."""
        return ("pool", "spatial") if self.name == "inception" else ("pool",)


class Extractor(NamedTuple):
    """extract: uint8 (B, 3, H, W) -> float32 (B, D) on the CPU of each layer; logits: features of
    the pool layer -> (B, classes), None where they lead to no class probabilities."""

    extract: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    logits: Callable[[torch.Tensor], torch.Tensor] | None


class Layer(NamedTuple):
    """One layer of one extractor; kept features and statistics belong to it."""

    features: Features
    name: str

    @property
    def tag(self) -> str:
        """`inception-1a2b3c4d`, `inception-1a2b3c4d-spatial`: part of a file's name."""
        tag = self.features.tag.replace(":", "-")
        return tag if self.name == "pool" else f"{tag}-{self.name}"
