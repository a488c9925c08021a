"""The latents that imported weights take: their autoencoder, and their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sitcli import names
from sitcli.autoencoders.load import load_autoencoder
from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling, wrong_values
from sitcli.storage.untrusted import read_content

STATISTICS = "latents_stats.pt"  # as LightningDiT's trainer calls it
SD_VAES = (names.DEFAULT_VAE, "stabilityai/sd-vae-ft-mse")
# Known without loading them: --latents-only needs no autoencoder.
SD_VAE_SPEC: dict[str, Any] = {
    "name": names.DEFAULT_VAE,
    "class": "AutoencoderKL",
    "kind": "kl",
    "latent_channels": 4,
    "downsample": 8,
    "deterministic": False,
    "scaling": 0.18215,
    "shift": 0.0,
    "hash": None,
}
VA_VAE_SPEC: dict[str, Any] = SD_VAE_SPEC | {
    "name": "hustvl/vavae-imagenet256-f16d32-dinov2",
    "latent_channels": 32,
    "downsample": 16,
    "scaling": 1.0,
}


def autoencoder_of(
    path: object, name: str | None, *, channels: int, usual: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Spec and arrays of the autoencoder whose latents, of so many channels, the weights take.

    name: --vae or the file's own, None if neither says; usual: specs of those that weights of this
    lineage were trained with.
    Raises UsageError if the weights take other latents, or nobody says which.
    """
    known = next((spec for spec in usual if spec["latent_channels"] == channels), None)
    if name is None and known is None:
        raise UsageError(
            f"{path} takes latents of {channels} channels, which are not the "
            f"{'SD VAE' if channels != VA_VAE_SPEC['latent_channels'] else 'usual autoencoder'}'s",
            "add --vae FOLDER, --vae STORE.h5, or --vae pixels",
        )
    if name is None:
        return dict(known), {}
    spec, arrays = SD_VAE_SPEC | {"name": name}, {}
    if name not in SD_VAES:
        autoencoder = load_autoencoder(name, device=torch.device("cpu"), dtype=torch.float32)
        arrays = {key: torch.from_numpy(value) for key, value in autoencoder.arrays.items()}
        spec = autoencoder.spec
    if channels != spec["latent_channels"]:
        raise UsageError(
            f"{path} takes latents of {channels} channels, and {spec['name']} has "
            f"{spec['latent_channels']}",
            "add --vae with the autoencoder of the latents",
        )
    return spec, arrays


def is_sd_vae(spec: dict[str, Any]) -> bool:
    """Whether latents of this autoencoder are Stable Diffusion's."""
    same = ("class", "latent_channels", "downsample", "scaling")
    return all(spec[name] == SD_VAE_SPEC[name] for name in same)


def read_statistics(path: Path, channels: int, multiplier: float) -> Scaling:
    """The normalisation (latents - mean) / std * multiplier of LightningDiT's latents_stats.pt.

    The file holds `mean` and `std`, a number for each of the channels.
    Raises SitError for a file that does not.
    """
    content = read_content(path)
    parts = [content.get(name) for name in ("mean", "std")] if isinstance(content, dict) else []
    values = [part.flatten().tolist() if isinstance(part, Tensor) else [] for part in parts]
    if len(values) != 2 or any(
        len(part) != channels or wrong_values(part, channels, zero=zero)
        for part, zero in zip(values, (True, False), strict=True)
    ) or min(values[1]) < 0:  # fmt: skip
        raise SitError(
            f"{path} does not hold a mean and a positive std for each of {channels} channels",
            "name LightningDiT's latents_stats.pt of these latents",
        )
    mean, std = values
    return Scaling([multiplier / s for s in std], mean)
