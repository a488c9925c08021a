"""Autoencoders by name, file or folder, or by the facts a latent store kept of one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli import names
from sitcli.autoencoders.base import Autoencoder
from sitcli.autoencoders.patch_pca import load_patch_pca
from sitcli.autoencoders.pixels import load_pixels
from sitcli.errors import SitError, UsageError
from sitcli.storage.untrusted import read_weights


def load_autoencoder(name: str, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder called `name`: an embedded one, a local file or folder, or a hub name.

    Of a latent store (.h5), the one it was made with.
    dtype: what matrix products run in. Raises UsageError for a name that is none of these,
    SitError for weights that cannot be had or read.
    """
    name = name.removeprefix("hf:")  # a hub name, which is known as one without it
    path = Path(name).expanduser()
    if name == "pixels":
        return load_pixels(device)
    if name == "patch-pca":
        raise UsageError(
            "patch-pca is fitted on the images being encoded and kept in their latent store",
            "it needs no --vae when the store is read",
        )
    if path.is_file():
        return _load_file(path, device=device, dtype=dtype)
    if path.is_dir():
        return _load_folder(path, device=device, dtype=dtype)
    # The hub's own rule for names; a third part and what follows is a folder in the repository.
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w-][\w.-]*)*", name) and not path.suffix:
        from sitcli.autoencoders import diffusers_vae

        return diffusers_vae.load_hub(name, device=device, dtype=dtype)
    raise UsageError(
        f"no autoencoder '{name}': there is no such file or folder, and it is not a hub name",
        f"use {', '.join(names.EMBEDDED_VAES)}, a path, or OWNER/NAME as in {names.DEFAULT_VAE}",
    )


def from_spec(
    spec: dict[str, Any],
    arrays: dict[str, np.ndarray],
    *,
    override: str | None = None,
    device: torch.device,
    dtype: torch.dtype,
) -> Autoencoder:
    """The autoencoder a latent store was made with.

    spec, arrays: as the store keeps them. override: where its weights are now, if they moved.
    Raises SitError if the weights are gone or are other weights than those of the spec.
    """
    name = spec["name"]
    if spec["kind"] in names.EMBEDDED_VAES:
        if override not in (None, name):
            raise UsageError(f"--vae {override}: the latents were made with {name}, built in")
        return load_pixels(device) if name == "pixels" else load_patch_pca(spec, arrays, device)
    found = override or name
    if override is None and Path(name).is_absolute() and not Path(name).exists():
        raise SitError(
            f"the autoencoder of these latents is gone: {name}",
            "say where it is now with --vae PATH",
        )
    autoencoder = load_autoencoder(found, device=device, dtype=dtype)
    if autoencoder.latent_channels != spec["latent_channels"]:
        raise SitError(
            f"{found} has {autoencoder.latent_channels} latent channels, and these latents have "
            f"{spec['latent_channels']}",
            "say which autoencoder they are of with --vae PATH",
        )
    # Of imported weights nobody has seen the autoencoder: what they name is believed.
    if spec["hash"] not in (None, autoencoder.spec["hash"]):
        raise SitError(
            f"{found} holds other weights than the autoencoder these latents were made with",
            f"those were {name} with hash {spec['hash'][:12]}; say where they are with --vae PATH",
        )
    return autoencoder


def _load_folder(path: Path, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    from sitcli.autoencoders import diffusers_vae, taesd

    for folder in (path, path / "vae"):  # a whole diffusers pipeline keeps it in vae/
        if (folder / "config.json").is_file():
            return diffusers_vae.load_folder(folder, device=device, dtype=dtype)
    encoder = taesd.find_encoder(path)
    return taesd.load(encoder, name=path, device=device, dtype=dtype)


def _load_file(path: Path, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    from sitcli.autoencoders import diffusers_vae, taesd

    if path.suffix == ".h5":
        from sitcli.latents.store import LatentStore

        store = LatentStore.open(path, allow_incomplete=True)
        return from_spec(store.autoencoder, store.autoencoder_arrays, device=device, dtype=dtype)
    weights = read_weights(path)
    if taesd.is_taesd(weights):
        return taesd.load(path, name=path, device=device, dtype=dtype)
    if diffusers_vae.is_original(weights):
        return diffusers_vae.load_original(path, weights, device=device, dtype=dtype)
    if (path.parent / "config.json").is_file():
        return diffusers_vae.load_folder(path.parent, device=device, dtype=dtype)
    raise SitError(
        f"{path} does not hold autoencoder weights that sit knows",
        "expected TAESD-style weights, an original Stable Diffusion VAE, or a diffusers folder "
        "with a config.json",
    )
