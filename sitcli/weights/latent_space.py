"""The latents that imported weights take: their autoencoder, and their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sitcli import names
from sitcli.autoencoders.load import load_autoencoder
from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling
from sitcli.latents.statistics import standardising

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
        have = " or ".join(str(spec["latent_channels"]) for spec in usual)
        raise UsageError(
            f"{path} takes latents of {channels} channels, and the usual autoencoder has {have}",
            "add --vae FOLDER, --vae STORE.h5, or --vae pixels",
        )
    if name is None:
        return dict(known), {}
    spec, arrays = named_autoencoder(name)
    if channels != spec["latent_channels"]:
        raise UsageError(
            f"{path} takes latents of {channels} channels, and {spec['name']} has "
            f"{spec['latent_channels']}",
            "add --vae with the autoencoder of the latents",
        )
    return spec, {key: torch.from_numpy(value) for key, value in arrays.items()}


def named_autoencoder(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Spec and arrays of the autoencoder of this name; that of Stable Diffusion is not loaded."""
    if name in SD_VAES:
        return SD_VAE_SPEC | {"name": name}, {}
    autoencoder = load_autoencoder(name, device=torch.device("cpu"), dtype=torch.float32)
    return autoencoder.spec, autoencoder.arrays


def is_sd_vae(spec: dict[str, Any]) -> bool:
    """Whether latents of this autoencoder are Stable Diffusion's."""
    same = ("class", "latent_channels", "downsample", "scaling")
    return all(spec[name] == SD_VAE_SPEC[name] for name in same)


def own_statistics(path: object, tensors: dict[str, Tensor], channels: int) -> Scaling:
    """The normalisation by the running mean and variance of REPA-E's batch norm of latents.

    Its eps counts in training alone: its sampler takes 1 / sqrt(variance). Raises SitError for
    tensors that are no such statistics.
    """
    mean, variance = (tensors.get(f"bn.running_{name}") for name in ("mean", "var"))
    std = variance if variance is None else variance.double().sqrt()
    found = standardising(mean, std, channels, 1.0)
    if found is None:
        raise SitError(
            f"{path}: bn.running_mean and bn.running_var are not statistics of {channels} channels",
            "fetch it again",
        )
    return found
