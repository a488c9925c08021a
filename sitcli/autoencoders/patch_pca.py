"""The embedded autoencoder `patch-pca`: whitened principal components of image patches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from sitcli.autoencoders.base import CPU, Autoencoder, Embedded, embedded_spec, hash_arrays
from sitcli.errors import SitError, UsageError


def fit_patch_pca(
    images: Iterable[np.ndarray], *, patch: int, channels: int, device: torch.device = CPU
) -> Autoencoder:
    """A linear autoencoder fitted on images: p x p patches to k whitened principal components.

    images: uint8 (H, W, 3) or (B, H, W, 3) arrays, H and W divisible by `patch`, read once.
    The result does not depend on the images' order or batching: bytes and their products are
    integers, which float64 sums exactly up to 10^11 patches.
    Raises UsageError if channels > 3 patch^2 or there is no image.
    """
    size = 3 * patch * patch
    if channels > size:
        raise UsageError(
            f"--pca-channels {channels}: a {patch} x {patch} patch has only {size} components"
        )
    count, total, products = 0, np.zeros(size), np.zeros((size, size))
    for array in images:
        batch = torch.from_numpy(np.ascontiguousarray(array)).reshape(-1, *array.shape[-3:])
        flat = _patches(batch.permute(0, 3, 1, 2), patch).reshape(-1, size).double().numpy()
        count += len(flat)
        total += flat.sum(axis=0)
        products += flat.T @ flat
    if not count:
        raise UsageError("patch-pca: there are no images to fit")
    mean = total / count
    variance, basis = np.linalg.eigh((products / count - np.outer(mean, mean)) / 127.5**2)
    variance, basis = np.maximum(variance[::-1], 0), basis[:, ::-1]
    kept = basis[:, :channels]
    # Eigenvectors are defined up to a sign: make each component's largest entry positive.
    kept = kept * np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(channels)])
    # A component whose std is below a hundredth of a grey level is rounding: do not amplify it.
    std = np.sqrt(variance[:channels])
    std[std < 0.01 / 127.5] = 1.0
    arrays = {
        "mean": (mean / 127.5 - 1).astype(np.float32),
        "basis": np.ascontiguousarray(kept, dtype=np.float32),
        "std": std.astype(np.float32),
    }
    spec = embedded_spec("patch-pca", "PatchPCA", channels=channels, downsample=patch)
    spec["patch"] = patch
    spec["explained_variance"] = float(variance[:channels].sum() / max(variance.sum(), 1e-30))
    spec["hash"] = hash_arrays(arrays)
    return load_patch_pca(spec, arrays, device)


def load_patch_pca(
    spec: dict[str, Any], arrays: dict[str, np.ndarray], device: torch.device
) -> Autoencoder:
    """The autoencoder with these arrays. Raises SitError if they do not match the spec's hash."""
    if hash_arrays(arrays) != spec["hash"]:
        raise SitError("the patch-pca basis in the latent store is damaged", "encode again")
    mean, basis, std = (torch.from_numpy(arrays[n]).to(device) for n in ("mean", "basis", "std"))
    patch = spec["patch"]

    def encode(images: torch.Tensor) -> torch.Tensor:
        return ((_patches(images, patch) - mean) @ basis / std).permute(0, 3, 1, 2)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        patches = (latents.permute(0, 2, 3, 1) * std) @ basis.T + mean
        b, h, w, _ = patches.shape
        grid = patches.reshape(b, h, w, patch, patch, 3)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, 3, h * patch, w * patch)

    # Always float32: it costs nothing, and whitening would amplify the rounding of bf16 products.
    return Autoencoder(spec, encode=encode, decode=decode, arrays=arrays, device=device)


def _patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, 3, H, W) -> (B, H/p, W/p, p*p*3), a patch flattened as (row, column, colour)."""
    b, c, height, width = images.shape
    grid = images.reshape(b, c, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, height // patch, width // patch, -1)


EMBEDDED = Embedded(
    restore=load_patch_pca,
    shape=lambda options: (options["pca_channels"], options["pca_patch"]),
    options={"pca_patch": 4, "pca_channels": 12},
    kept=lambda spec: {"pca_patch": spec["patch"], "pca_channels": spec["latent_channels"]},
    fit=lambda images, options, device: fit_patch_pca(
        images, patch=options["pca_patch"], channels=options["pca_channels"], device=device
    ),
)
