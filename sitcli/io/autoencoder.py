"""Autoencoders: pictures in [-1, 1] to latents and back, whatever made the weights.

Four families behind one class: two embedded ones that need no download (`pixels`, `patch-pca`),
TAESD-style weights files (`sitcli.io.taesd`) and diffusers' AutoencoderKL, AutoencoderTiny and
AutoencoderDC (`sitcli.io.diffusers_vae`).

An autoencoder's `spec` is a JSON-able dict that a latent store keeps and `from_spec` reads back:

    name             what the user gave; absolute for a local path
    class            the network's class ("AutoencoderKL", "TAESD", "Pixels", "PatchPCA")
    kind             "pixels", "patch-pca", "taesd", "kl", "tiny" or "dc"
    latent_channels  C
    downsample       pixels per latent, each way
    deterministic    False if encode returns the posterior's mean and std
    scaling, shift   networks are trained on (z - shift) * scaling
    hash             sha256 of the weights
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli import names
from sitcli.errors import SitError, UsageError
from sitcli.io.launch import autocast
from sitcli.io.weights import named_tensors, read_content

CPU = torch.device("cpu")
# Decoding an 84M-parameter VAE takes about 0.5 GB of activations for each 256 x 256 image.
PIXELS_PER_CALL = {"cpu": 4 * 256 * 256, "cuda": 32 * 256 * 256, "mps": 4 * 256 * 256}


def to_signed(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]; `to_uint8` is its exact inverse."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return tensor.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3) on the CPU.

    Rounds to nearest as the DiT and SiT samplers do, floor(127.5 x + 128), so that every byte
    survives float16 latents.
    """
    rounded = images.float().mul(127.5).add_(128).clamp_(0, 255)
    return rounded.permute(0, 2, 3, 1).to(torch.uint8).contiguous().cpu()


def decode_latents(
    autoencoder: Autoencoder, latents: torch.Tensor, scaling: float | list[float]
) -> torch.Tensor:
    """Latents as a network is trained on, (B, C, h, w), -> uint8 (B, H, W, 3) on the CPU.

    scaling: the store's, one number or one per channel; the shift is the autoencoder's own.
    """
    factor = torch.as_tensor(scaling, dtype=torch.float32, device=latents.device)
    unscaled = latents.float() / factor.reshape(-1, 1, 1) + autoencoder.shift
    return to_uint8(autoencoder.decode(unscaled))


def encode_latents(
    autoencoder: Autoencoder, images: np.ndarray, scaling: float | list[float]
) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> latents as a network is trained on, (B, C, h, w), on the device.

    The posterior's mode where there is one. The inverse of `decode_latents` but for what the
    autoencoder loses. Works in slices, so memory stays bounded.
    """
    channels = autoencoder.latent_channels
    pixels = images.shape[1] * images.shape[2]
    slices = to_signed(images).split(autoencoder.images_per_call(pixels))
    latents = torch.cat([autoencoder.encode(part)[:, :channels] for part in slices])
    factor = torch.as_tensor(scaling, dtype=torch.float32, device=latents.device)
    return (latents - autoencoder.shift) * factor.reshape(-1, 1, 1)


def load_autoencoder(name: str, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder called `name`: an embedded one, a local file or folder, or a hub name.

    Of a latent store (.h5), the one it was made with.
    dtype: what matrix products run in. Raises UsageError for a name that is none of these,
    SitError for weights that cannot be had or read.
    """
    name = name.removeprefix("hf:")  # a hub name, which is known as one without it
    path = Path(name).expanduser()
    if name == "pixels":
        return _pixels(device)
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
        from sitcli.io import diffusers_vae

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
        return _pixels(device) if name == "pixels" else _patch_pca(spec, arrays, device)
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


def fit_patch_pca(
    images: Iterable[np.ndarray], *, patch: int, channels: int, device: torch.device = CPU
) -> Autoencoder:
    """A linear autoencoder fitted on images: p x p patches to k whitened principal components.

    images: uint8 (H, W, 3) or (B, H, W, 3) arrays, H and W divisible by `patch`, read once.
    The result depends on the images alone, not on their order or batching: bytes and their
    products are integers, which float64 sums exactly up to 10^11 patches.
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
    # Each component's largest entry is positive: eigenvectors are defined up to a sign.
    kept = kept * np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(channels)])
    # A component that never moves by a hundredth of a grey level is rounding: it stays 0.
    std = np.sqrt(variance[:channels])
    std[std < 0.01 / 127.5] = 1.0
    arrays = {
        "mean": (mean / 127.5 - 1).astype(np.float32),
        "basis": np.ascontiguousarray(kept, dtype=np.float32),
        "std": std.astype(np.float32),
    }
    spec = _embedded_spec("patch-pca", "PatchPCA", channels=channels, downsample=patch)
    spec["patch"] = patch
    spec["explained_variance"] = float(variance[:channels].sum() / max(variance.sum(), 1e-30))
    spec["hash"] = hash_arrays(arrays)
    return _patch_pca(spec, arrays, device)


def hash_arrays(arrays: dict[str, np.ndarray] | dict[str, torch.Tensor]) -> str:
    """sha256 over the names, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _embedded_spec(name: str, class_name: str, *, channels: int, downsample: int) -> dict[str, Any]:
    return {
        "name": name,
        "class": class_name,
        "kind": name,
        "latent_channels": channels,
        "downsample": downsample,
        "deterministic": True,
        "scaling": 1.0,
        "shift": 0.0,
    }


def _pixels(device: torch.device) -> Autoencoder:
    spec = _embedded_spec("pixels", "Pixels", channels=3, downsample=1)
    spec["hash"] = hashlib.sha256(b"pixels").hexdigest()
    return Autoencoder(spec, encode=lambda x: x, decode=lambda z: z, device=device)


def _patch_pca(
    spec: dict[str, Any], arrays: dict[str, np.ndarray], device: torch.device
) -> Autoencoder:
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

    # Always float32: it costs nothing, and bf16 products would blur what whitening amplifies.
    return Autoencoder(spec, encode=encode, decode=decode, arrays=arrays, device=device)


def _patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, 3, H, W) -> (B, H/p, W/p, p*p*3), a patch flattened as (row, column, colour)."""
    b, c, height, width = images.shape
    grid = images.reshape(b, c, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, height // patch, width // patch, -1)


def _load_folder(path: Path, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    from sitcli.io import diffusers_vae, taesd

    for folder in (path, path / "vae"):  # a whole diffusers pipeline keeps it in vae/
        if (folder / "config.json").is_file():
            return diffusers_vae.load_folder(folder, device=device, dtype=dtype)
    encoder = taesd.find_encoder(path)
    return taesd.load(encoder, name=path, device=device, dtype=dtype)


def _load_file(path: Path, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    from sitcli.io import diffusers_vae, taesd

    if path.suffix == ".h5":
        from sitcli.io.latents import LatentStore

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


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .ckpt file, by name; runs no code of the file.

    Raises SitError if it cannot be read that way.
    """
    content = read_content(path)
    if not isinstance(content, dict):
        raise SitError(f"{path} holds no named tensors")
    return named_tensors(content)


def wrap_network(
    network: torch.nn.Module,
    spec: dict[str, Any],
    *,
    encode: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Autoencoder:
    """An Autoencoder around a convolutional network whose float32 weights are on the CPU.

    encode, decode: what the network's methods give, as tensors. Adds the spec's hash.
    """
    network.eval().requires_grad_(False)
    spec = {**spec, "hash": hash_arrays(network.state_dict())}
    network.to(device, memory_format=torch.channels_last)
    return Autoencoder(spec, encode=encode, decode=decode, device=device, dtype=dtype)


class Autoencoder:
    """Pictures to latents and back; made by `load_autoencoder`, `from_spec`, `fit_patch_pca`.

    spec:   what it is (see the module's docstring).
    arrays: float32 arrays the latent store must keep for `from_spec`; {} unless patch-pca.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        *,
        encode: Callable[[torch.Tensor], torch.Tensor],
        decode: Callable[[torch.Tensor], torch.Tensor],
        arrays: dict[str, np.ndarray] | None = None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec, self.arrays = spec, arrays or {}
        self.latent_channels: int = spec["latent_channels"]
        self.downsample: int = spec["downsample"]
        self.deterministic: bool = spec["deterministic"]
        self.scaling: float = spec["scaling"]
        self.shift: float = spec["shift"]
        self._encode, self._decode = encode, decode
        self._device, self._dtype = device, dtype

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> unscaled latents, float32 on the device.

        (B, C, h, w) if deterministic, else (B, 2C, h, w): the posterior's mean, then its std.
        Raises UsageError if H or W is not divisible by `downsample`.
        """
        height, width = images.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise UsageError(
                f"{height} x {width} pixels cannot be encoded by {self.spec['name']}: "
                f"the image size must be a multiple of {self.downsample}"
            )
        return self._run(self._encode, images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Unscaled latents (B, C, h, w) -> images (B, 3, H, W), float32 on the device.

        Images lie in [-1, 1] but may overshoot. Works in slices, so memory stays bounded.
        """
        step = self.images_per_call(latents.shape[-2] * latents.shape[-1] * self.downsample**2)
        return torch.cat([self._run(self._decode, part) for part in latents.split(step)])

    def images_per_call(self, pixels: int) -> int:
        """How many images of `pixels` pixels the network is given at once."""
        return max(1, PIXELS_PER_CALL[self._device.type] // pixels)

    def _run(self, function: Callable, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), autocast(self._device, self._dtype):
            result = function(batch.to(self._device, torch.float32, non_blocking=True))
        # Rows of what we hand out are written to files: plain (B, C, h, w) order.
        return result.float().contiguous()
