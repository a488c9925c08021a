"""Encoders for REPA, which turn an image into a map of features; a latent store keeps the maps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sitcli.errors import SitError, UsageError
from sitcli.features.dinov2 import DINOV2_PATCH, DINOV2_SIDE, IMAGENET, dinov2_tokens, resized_input
from sitcli.features.extractors import choose_features
from sitcli.features.torchscript import load_torchscript
from sitcli.storage.files import hash_file
from sitcli.storage.hub import local_path
from sitcli.storage.untrusted import named_tensors, read_content
from sitcli.text import first_line

TIMM = "timm:"


class Aligner(NamedTuple):
    """An encoder for REPA.

    spec: name, hash, asked (the value of --align-features) and shape [D, rows, columns].
    encode: uint8 (B, 3, S, S) -> float32 (B, D, rows, columns).
    """

    spec: dict[str, Any]
    encode: Callable[[Tensor], Tensor]


@torch.no_grad()
def load_aligner(
    asked: str, weights: Path | None, *, image_size: int, device: torch.device
) -> Aligner:
    """The encoder that `--align-features` names, for images of this side.

    Raises UsageError for an unknown name, SitError for weights that are missing or do not fit.
    """
    weights = weights and local_path(weights)
    if asked == "dinov2":
        features = choose_features("dinov2", {"dinov2": weights})
        # As in REPA: 224 for 256 pixels, 448 for 512, so that there is a feature for each token.
        side = max(DINOV2_SIDE, DINOV2_PATCH * (image_size // 16))
        tokens = dinov2_tokens(features.path, device, side)
        name, hash_, encode = "dinov2", features.hash, lambda images: _as_map(tokens(images), 1)
    elif asked.startswith(TIMM):
        name = asked.removeprefix(TIMM)
        encode, hash_ = _load_timm(name, weights, device)
    else:
        if weights is not None:
            raise UsageError(
                f"--align-weights has no effect with --align-features {asked}",
                "remove --align-weights",
            )
        path = local_path(asked)
        if not path.is_file():
            raise UsageError(
                f"--align-features {asked} is neither dinov2, timm:NAME, nor a file",
                "use dinov2, timm:vit_base_patch16_224, or a TorchScript file",
            )
        name, hash_ = path.name, hash_file(path)
        encode = load_torchscript(path, device, ("D", "rows", "columns"))
    found = encode(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8))
    spec = dict(name=name, hash=hash_, asked=asked, shape=list(found.shape[1:]))
    return Aligner(spec, encode)


def _as_map(tokens: Tensor, prefix: int) -> Tensor:
    """Tokens (B, prefix + n*n, D) -> (B, D, n, n). Raises SitError if they form no square."""
    grid = tokens[:, prefix:]
    side = round(grid.shape[1] ** 0.5)
    if side * side != grid.shape[1]:
        raise SitError(f"the encoder gives {grid.shape[1]} tokens, which form no square map")
    return grid.transpose(1, 2).unflatten(2, (side, side))


def _load_timm(
    name: str, weights: Path | None, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], str]:
    """(encode, hash): a timm model up to its last features before pooling.

    encode resizes images to the model's own size and normalises them as the model expects.
    """
    import timm

    if not timm.is_model(name):
        raise UsageError(f"timm has no model '{name}'", "choose one of timm.list_models()")
    try:
        network = timm.create_model(name, pretrained=weights is None, num_classes=0)
    except Exception as error:  # the hub's library raises a dozen types
        raise SitError(
            f"timm's weights of {name} are not on this machine and cannot be fetched: "
            f"{first_line(error)}",
            "name them with --align-weights FILE, or fetch them on a connected machine",
        ) from None
    if weights is not None:
        try:
            state = named_tensors(read_content(weights))
            heads = {key for key in state if key.startswith(("head.", "fc.", "classifier."))}
            network.load_state_dict({k: v for k, v in state.items() if k not in heads})
        except (RuntimeError, ValueError, TypeError) as error:
            raise SitError(
                f"{weights} does not hold the weights of timm's {name}: {first_line(error)}",
                "give a state dict of that model",
            ) from None
    network = network.eval().requires_grad_(False).to(device)
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().float().numpy())
    config = network.pretrained_cfg
    side = config.get("input_size", (3, DINOV2_SIDE, DINOV2_SIDE))[1]
    mean, std = config.get("mean", IMAGENET[0]), config.get("std", IMAGENET[1])

    def encode(images: Tensor) -> Tensor:
        found = network.forward_features(resized_input(images, device, side, mean, std)).float()
        if found.ndim == 3:
            return _as_map(found, getattr(network, "num_prefix_tokens", 0))
        # Some convolutional models keep channels last.
        last = found.shape[1] != network.num_features and found.shape[3] == network.num_features
        return found.permute(0, 3, 1, 2) if last else found

    return encode, digest.hexdigest()
