"""The interface of all autoencoders, and the conversions between uint8 images and latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sitcli.errors import UsageError
from sitcli.latents.scaling import Scaling
from sitcli.machine.devices import autocast

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A built-in autoencoder: `--vae NAME` needs no file. It always computes in float32.

    restore(spec, arrays, device): the autoencoder, from the spec and arrays in a latent store.
    shape(options): the number of latent channels, and the side in pixels of one latent position.
    options: its own options of `sit encode-latents`, with their defaults.
    kept(spec): the values of those options when the spec was made.
    fit(images, options, device): the autoencoder fitted on images; None if nothing is fitted.
    identity: whether the latents are the pixels themselves.
    """

    restore: Callable[[dict[str, Any], dict[str, np.ndarray], torch.device], Autoencoder]
    shape: Callable[[Mapping[str, int]], tuple[int, int]]
    options: Mapping[str, int] = field(default_factory=dict)
    kept: Callable[[dict[str, Any]], dict[str, int]] = lambda spec: {}
    fit: Callable[[Iterable[np.ndarray], Mapping[str, int], torch.device], Autoencoder] | None = (
        None
    )
    identity: bool = False


class Family(NamedTuple):
    """A kind of autoencoder that users bring as files.

    in_file(path, weights): whether the file at `path`, with these tensors, is of this kind.
    in_folder(path): the path to give to `load` for a folder, None if none of this kind is in it.
    load(path, weights, name, device, dtype): the autoencoder. weights: the file's tensors, None
    for a path that `in_folder` found; name: the path the user gave.
    """

    in_file: Callable[[Path, dict[str, torch.Tensor]], bool]
    in_folder: Callable[[Path], Path | None]
    load: Callable[..., Autoencoder]


# An 84M-parameter VAE needs about 0.5 GB of activations to decode a 256 x 256 image.
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
    autoencoder: Autoencoder, latents: torch.Tensor, scaling: Scaling
) -> torch.Tensor:
    """Scaled latents (B, C, h, w), as a network is trained on, -> uint8 (B, H, W, 3) on the CPU.

    scaling: the latent store's or the checkpoint's.
    """
    return to_uint8(autoencoder.decode(scaling.undo(latents.float())))


def encode_latents(autoencoder: Autoencoder, images: np.ndarray, scaling: Scaling) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> scaled latents (B, C, h, w), as a network is trained on, on the device.

    The latents are the posterior's mode where the autoencoder has a posterior. Up to the loss of
    the autoencoder, this inverts `decode_latents`. Works in slices, so memory stays bounded.
    """
    channels = autoencoder.latent_channels
    pixels = images.shape[1] * images.shape[2]
    slices = to_signed(images).split(autoencoder.images_per_call(pixels))
    latents = torch.cat([autoencoder.encode(part)[:, :channels] for part in slices])
    return scaling.normalise(latents)


def hash_arrays(arrays: dict[str, np.ndarray] | dict[str, torch.Tensor]) -> str:
    """sha256, in hex, over the arrays' names, types, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def embedded_spec(name: str, class_name: str, *, channels: int, downsample: int) -> dict[str, Any]:
    """The spec of a built-in autoencoder, without its hash."""
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

    encode, decode: functions from tensors to tensors. The hash of the weights is added to `spec`.
    """
    network.eval().requires_grad_(False)
    spec = {**spec, "hash": hash_arrays(network.state_dict())}
    # Convolutions over frames have weights of five dimensions, which have no such layout.
    flat = all(parameter.ndim < 5 for parameter in network.parameters())
    network.to(device, memory_format=torch.channels_last if flat else torch.preserve_format)
    return Autoencoder(spec, encode=encode, decode=decode, device=device, dtype=dtype)


class Autoencoder:
    """Pictures to latents and back; made by `load_autoencoder`, `from_spec`, `fit_patch_pca`.

    spec:   name, class, kind, latent_channels, downsample, deterministic, scaling, shift, hash;
            scaling and shift are numbers, or lists of one per channel. image_size, if there is
            one, is the only side of images that it takes.
    arrays: float32 arrays that a latent store must keep for `from_spec`; {} unless patch-pca.
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
        self.scaling = Scaling.of_spec(spec)
        self._encode, self._decode = encode, decode
        self._device, self._dtype = device, dtype

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> unscaled latents, float32 on the device.

        (B, C, h, w) if deterministic, else (B, 2C, h, w): the posterior's mean, then its std.
        Raises UsageError if H or W is not divisible by `downsample`, or not the one side it takes.
        """
        height, width = images.shape[-2:]
        if (size := self.spec.get("image_size")) is not None and {height, width} != {size}:
            raise UsageError(
                f"{height} x {width} pixels cannot be encoded by {self.spec['name']}: "
                f"it takes images of {size} x {size}"
            )
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
        """The number of images with `pixels` pixels that the network takes at once."""
        return max(1, PIXELS_PER_CALL[self._device.type] // pixels)

    def _run(self, function: Callable, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), autocast(self._device, self._dtype):
            result = function(batch.to(self._device, torch.float32, non_blocking=True))
        # The rows are written to files, so they must be in plain (B, C, h, w) order.
        return result.float().contiguous()
