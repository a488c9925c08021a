"""Feature extractors by name or file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from sitcli.errors import SitError, UsageError
from sitcli.features import dinov2, inception
from sitcli.features.base import Extractor, Features, Kind
from sitcli.features.torchscript import load_torchscript
from sitcli.storage.files import hash_file
from sitcli.storage.hub import local_path

PIXELS_SIDE = 16


def _pixels(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """(B, 3, H, W) uint8 -> (B, at most 768): area averages on a 16 x 16 grid, in [0, 1]."""
    height, width = images.shape[2:]
    grid = (min(height, PIXELS_SIDE), min(width, PIXELS_SIDE))
    return {"pool": F.adaptive_avg_pool2d(images.float() / 255, grid).flatten(1)}


# Keys are values of --features; any other value is a TorchScript file.
KINDS: dict[str, Kind] = {
    "inception": inception.KIND,
    "dinov2": dinov2.KIND,
    "pixels": Kind(lambda path, device, layers: Extractor(_pixels, logits=None)),
}


def choose_features(name: str, weights: Mapping[str, Path | None] | None = None) -> Features:
    """The extractor that `--features NAME` means; hashes its weights' file but does not load it.

    weights: the files of the kinds' weights by name; a kind that is missing or None is looked for
    where torch hub keeps its files.
    Raises UsageError for an unknown name, SitError if the weights are not on this machine.
    """
    kind = KINDS.get(name)
    if kind is None:
        path = local_path(name)
        if not path.is_file():
            raise UsageError(
                f"--features {name} is neither a known extractor nor a file",
                f"use {', '.join(KINDS)}, or the path of a TorchScript module",
            )
        return Features(name=path.name, path=path, hash=_hash_of(path))
    if not kind.file:
        return Features(name=name, path=None, hash="", **kind.facts)
    given = (weights or {}).get(name)
    path = local_path(given) if given else _hub_file(kind.file)
    if not path.is_file():
        raise _missing(kind, path, asked=bool(given))
    return Features(name=name, path=path, hash=_hash_of(path), **kind.facts)


def _hub_file(name: str) -> Path:
    """Where torch hub, and so torch-fidelity, keeps a file of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _missing(kind: Kind, path: Path, *, asked: bool) -> SitError:
    if asked:
        return SitError(f"{kind.option} {path}: no such file", f"the official one is {kind.url}")
    return SitError(
        f"{kind.title}'s weights, {path.name}, are not at {path}",
        f"fetch them: curl -L --create-dirs -o {path} {kind.url} ; or name them with "
        f"{kind.option} FILE; or, without a download, measure --features pixels alone",
    )


def _hash_of(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None


def load_extractor(
    features: Features, device: torch.device, layers: Sequence[str] = ("pool",)
) -> Extractor:
    """The loaded extractor on `device`, for the given layers.

    Raises SitError for a file that does not hold the extractor's weights.
    """
    if features.name in KINDS:
        return KINDS[features.name].load(features.path, device, layers)
    module = load_torchscript(features.path, device, ("D",))
    return Extractor(lambda images: {"pool": module(images).cpu()}, logits=None)
