"""What an extractor gives, and which of its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch


def last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which features: an extractor's name or a TorchScript file's, and the hash of its weights.

    hash: sha256 of the weights' file, empty without one. layers: pool is one vector an image,
    spatial InceptionV3's mixed_6 map, for sFID. resizes: whether images of any size become one
    size within. has_classes: whether class probabilities follow from them. official_hash: how the
    hash of the weights begins with which figures are the published ones; "" if there are none.
    """

    name: str
    path: Path | None
    hash: str
    layers: tuple[str, ...] = ("pool",)
    resizes: bool = False
    has_classes: bool = False
    official_hash: str = ""

    @property
    def official(self) -> bool:
        """Whether figures made with them may be called FID, sFID, KID and IS."""
        return bool(self.official_hash) and self.hash.startswith(self.official_hash)

    @property
    def tag(self) -> str:
        """`inception:1a2b3c4d`, `pixels`."""
        return f"{self.name}:{self.hash[:8]}" if self.hash else self.name

    def label(self, metric: str) -> str:
        """What to call a figure: FID and so on, or FD[pixels] for what is not quite that."""
        if self.official:
            return metric
        return f"{dict(FID='FD', sFID='sFD', KID='KD').get(metric, metric)}[{self.tag}]"


class Kind(NamedTuple):
    """An extractor known by name.

    load(path, device, layers); title, file, url: of its weights, "" if it has none; option: which
    gives their place; facts: what else its `Features` say.
    """

    load: Callable[[Path | None, torch.device, Sequence[str]], Extractor]
    title: str = ""
    file: str = ""
    url: str = ""
    option: str = ""
    facts: Mapping[str, Any] = MappingProxyType({})


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
