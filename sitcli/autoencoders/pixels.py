"""The embedded autoencoder `pixels`: the image itself, in [-1, 1]."""

from __future__ import annotations

import hashlib

import torch

from sitcli.autoencoders.base import Autoencoder, Embedded, embedded_spec


def load_pixels(device: torch.device) -> Autoencoder:
    """The identity on images (B, 3, H, W)."""
    spec = embedded_spec("pixels", "Pixels", channels=3, downsample=1)
    spec["hash"] = hashlib.sha256(b"pixels").hexdigest()
    return Autoencoder(spec, encode=lambda x: x, decode=lambda z: z, device=device)


EMBEDDED = Embedded(
    restore=lambda spec, arrays, device: load_pixels(device),
    shape=lambda options: (3, 1),
    identity=True,
)
