"""Autoencoders by name, file or folder, or by the spec in a latent store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli import names
from sitcli.autoencoders import diffusers_vae, original_vae, patch_pca, pixels, taesd
from sitcli.autoencoders.base import Autoencoder, Embedded, Family
from sitcli.errors import SitError, UsageError
from sitcli.latents.store import LatentStore
from sitcli.storage.untrusted import read_weights

UNKNOWN = "unknown"  # name and kind of an autoencoder that `sit import-latents` was not told
# Keys are values of --vae.
EMBEDDED: dict[str, Embedded] = {"pixels": pixels.EMBEDDED, "patch-pca": patch_pca.EMBEDDED}
# Tried in this order for a file. diffusers is last: any file may lie beside a config.json.
FAMILIES: dict[str, Family] = {
    "taesd": taesd.FAMILY,
    "original": original_vae.ORIGINAL,
    "diffusers": diffusers_vae.FAMILY,
}


def is_identity(spec: dict[str, Any]) -> bool:
    """Whether latents of this autoencoder are the images' pixels themselves."""
    return spec["kind"] in EMBEDDED and EMBEDDED[spec["kind"]].identity


def unknown_spec(channels: int, *, downsample: int, moments: bool) -> dict[str, Any]:
    """The spec of an autoencoder of which nobody knows more than its latents."""
    return {
        "name": UNKNOWN,
        "class": UNKNOWN,
        "kind": UNKNOWN,
        "latent_channels": channels,
        "downsample": downsample,
        "deterministic": not moments,
        "scaling": 1.0,
        "shift": 0.0,
        "hash": None,
    }


def check_known(spec: dict[str, Any], override: str | None) -> None:
    """Raise SitError if no one has said which autoencoder made the latents; override: --vae."""
    if (override or spec["name"]) == UNKNOWN:
        raise SitError(
            "nobody said which autoencoder made these latents",
            "name it with --vae NAME; sit sample --latents-only needs none",
        )


def load_autoencoder(name: str, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder called `name`: an embedded one, a local file or folder, or a hub name.

    For a latent store (.h5) it is the autoencoder the store was made with. dtype: the type of its
    matrix products.
    Raises UsageError for a name that is none of these, SitError for weights that cannot be fetched
    or read.
    """
    name = name.removeprefix("hf:")  # a hub name is recognised without it
    path = Path(name).expanduser()
    if name in EMBEDDED:
        if EMBEDDED[name].fit is not None:
            raise UsageError(
                f"{name} is fitted on the images being encoded and kept in their latent store",
                "remove --vae: the latent store brings its autoencoder",
            )
        return EMBEDDED[name].restore({}, {}, device)
    if path.is_file():
        return _load_file(path, device=device, dtype=dtype)
    if path.is_dir():
        return _load_folder(path, device=device, dtype=dtype)
    # The hub's own rule for names; a third part and what follows is a folder in the repository.
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w-][\w.-]*)*", name) and not path.suffix:
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

    spec, arrays: from the store. override: the path or name of its weights now, if they moved.
    Raises SitError if the weights are gone or differ from those of the spec, UsageError for an
    override of a built-in autoencoder.
    """
    name = spec["name"]
    if spec["kind"] in EMBEDDED:
        if override not in (None, name):
            raise UsageError(
                f"--vae {override} has no effect: these latents were made with {name}, built in",
                "remove --vae",
            )
        return EMBEDDED[spec["kind"]].restore(spec, arrays, device)
    found = override or name
    check_known(spec, override)
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
            "name the autoencoder that made them with --vae PATH",
        )
    if spec["kind"] == UNKNOWN and autoencoder.downsample != spec["downsample"]:
        raise SitError(
            f"{found} makes {autoencoder.downsample} pixels of a latent position, and these "
            f"latents were imported with {spec['downsample']}",
            "import them again with --vae NAME, or with their --image-size",
        )
    # Imported weights and latents name an autoencoder but have no hash of it: any is accepted.
    if spec["hash"] not in (None, autoencoder.spec["hash"]):
        raise SitError(
            f"{found} holds other weights than the autoencoder these latents were made with",
            f"those were {name} with hash {spec['hash'][:12]}; say where they are with --vae PATH",
        )
    return autoencoder


def _load_folder(path: Path, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    # A config.json identifies the folder's content for certain, unlike names of files.
    for family in reversed(FAMILIES.values()):
        if (found := family.in_folder(path)) is not None:
            return family.load(found, None, name=path, device=device, dtype=dtype)
    raise SitError(
        f"{path} holds no autoencoder that sit knows",
        "expected a diffusers folder with a config.json, or NAME_encoder.pth beside "
        "NAME_decoder.pth",
    )


def _load_file(path: Path, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    if path.suffix == ".h5":
        store = LatentStore.open(path, allow_incomplete=True)
        return from_spec(store.autoencoder, store.autoencoder_arrays, device=device, dtype=dtype)
    weights = read_weights(path)
    for family in FAMILIES.values():
        if family.in_file(path, weights):
            return family.load(path, weights, name=path, device=device, dtype=dtype)
    raise SitError(
        f"{path} does not hold autoencoder weights that sit knows",
        "expected TAESD-style weights, an original Stable Diffusion VAE or VA-VAE, or a diffusers "
        "folder with a config.json",
    )
