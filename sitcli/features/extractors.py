"""Feature extractors by name or file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from sitcli.errors import SitError, UsageError
from sitcli.features.base import Extractor, Features
from sitcli.features.dinov2 import DINOV2_FILE, DINOV2_URL, load_dinov2
from sitcli.features.inception import INCEPTION_FILE, INCEPTION_URL, load_inception
from sitcli.features.torchscript import load_torchscript
from sitcli.storage.files import hash_file
from sitcli.storage.hub import local_path

PIXELS_SIDE = 16


def choose_features(
    name: str, weights: Path | None = None, *, dinov2_weights: Path | None = None
) -> Features:
    """Which extractor `--features` and its weights mean; reads the file's hash only.

    Raises UsageError for an unknown name, SitError when the weights are not here.
    """
    weights = weights and local_path(weights)
    dinov2_weights = dinov2_weights and local_path(dinov2_weights)
    if weights is not None and name != "inception":
        raise UsageError(f"--features-weights belongs to --features inception, not to {name}")
    if name == "pixels":
        return Features(name="pixels", path=None, hash="")
    if name == "inception":
        path = weights or _hub_file(INCEPTION_FILE)
        if not path.is_file():
            asked = "--features-weights" if weights is not None else ""
            raise _missing("InceptionV3", path, INCEPTION_URL, asked, "--features-weights")
        return Features(name="inception", path=path, hash=_hash_of(path))
    if name == "dinov2":
        path = dinov2_weights or _hub_file(DINOV2_FILE)
        if not path.is_file():
            asked = "--dinov2-weights" if dinov2_weights is not None else ""
            raise _missing("DINOv2", path, DINOV2_URL, asked, "--dinov2-weights")
        return Features(name="dinov2", path=path, hash=_hash_of(path))
    path = local_path(name)
    if not path.is_file():
        raise UsageError(
            f"--features {name}: neither a known extractor nor a file",
            "use inception, dinov2, pixels, or the path of a TorchScript module",
        )
    return Features(name=path.name, path=path, hash=_hash_of(path))


def _hub_file(name: str) -> Path:
    """Where torch hub, and torch-fidelity with it, keep a file of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _missing(what: str, path: Path, url: str, asked: str, option: str) -> SitError:
    if asked:
        return SitError(f"{asked} {path}: no such file", f"the official one is {url}")
    return SitError(
        f"{what}'s weights, {path.name}, are not at {path}",
        f"fetch them: curl -L --create-dirs -o {path} {url} ; or give their place with "
        f"{option} FILE; or compare offline with --features pixels (which is not FID)",
    )


def _hash_of(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None


def load_extractor(
    features: Features, device: torch.device, layers: Sequence[str] = ("pool",)
) -> Extractor:
    """The extractor itself, ready on `device`, for these of the features' layers.

    Raises SitError for a file that does not fit.
    """
    if features.name == "pixels":
        return Extractor(_pixels, logits=None)
    if features.name == "inception":
        return load_inception(features.path, device, layers)
    if features.name == "dinov2":
        return load_dinov2(features.path, device)
    module = load_torchscript(features.path, device, ("D",))
    return Extractor(lambda images: {"pool": module(images).cpu()}, logits=None)


def _pixels(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """(B, 3, H, W) uint8 -> (B, at most 768): area averages on a 16 x 16 grid, in [0, 1]."""
    height, width = images.shape[2:]
    grid = (min(height, PIXELS_SIDE), min(width, PIXELS_SIDE))
    return {"pool": F.adaptive_avg_pool2d(images.float() / 255, grid).flatten(1)}
