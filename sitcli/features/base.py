"""Feature extractors, their layers, and the names of the figures computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch


def last_line(error: Exception) -> str:
    """The last line of an error's text that is not blank, or its repr if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


@dataclass(frozen=True, kw_only=True)
class Features:
    """The identity of a feature extractor: its name, its weights and what it can compute.

    name: a row of KINDS, or a TorchScript file's name. hash: sha256 of the weights' file, "" if
    there is none. layers: pool is one vector per image, spatial is InceptionV3's mixed_6 map, for
    sFID. resizes: whether it resizes images of any size itself. has_classes: whether it gives
    class probabilities. official_hash: the first digits of the hash of the weights that published
    figures use; "" if there are no published figures.
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
        """Whether figures made with these features may be called FID, sFID, KID and IS."""
        return bool(self.official_hash) and self.hash.startswith(self.official_hash)

    @property
    def tag(self) -> str:
        """The name with the hash's first digits: `inception:1a2b3c4d`, or `pixels`."""
        return f"{self.name}:{self.hash[:8]}" if self.hash else self.name

    def label(self, metric: str) -> str:
        """The name of a figure: FID with official weights, else FD[pixels]; KID becomes KD."""
        if self.official:
            return metric
        return f"{dict(FID='FD', sFID='sFD', KID='KD').get(metric, metric)}[{self.tag}]"


class Kind(NamedTuple):
    """An extractor known by name.

    load(path, device, layers): makes the extractor. title, file, url: name, file name and source
    of its weights, "" if it has none. option: the option that names the weights' file. facts:
    further fields of its `Features`.
    """

    load: Callable[[Path | None, torch.device, Sequence[str]], Extractor]
    title: str = ""
    file: str = ""
    url: str = ""
    option: str = ""
    facts: Mapping[str, Any] = MappingProxyType({})


class Extractor(NamedTuple):
    """A loaded extractor.

    extract: uint8 (B, 3, H, W) -> layer -> float32 (B, D) on the CPU.
    logits: features of the pool layer -> (B, classes); None if it gives no class probabilities.
    """

    extract: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    logits: Callable[[torch.Tensor], torch.Tensor] | None


class Layer(NamedTuple):
    """One layer of one extractor; every file of features or statistics belongs to one."""

    features: Features
    name: str

    @property
    def tag(self) -> str:
        """`inception-1a2b3c4d` or `inception-1a2b3c4d-spatial`, for use in a file's name."""
        tag = self.features.tag.replace(":", "-")
        return tag if self.name == "pool" else f"{tag}-{self.name}"
