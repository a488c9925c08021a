"""The identity autoencoder."""

from __future__ import annotations

import numpy as np
import torch

from sitcli.autoencoders.base import decode_latents, to_signed
from sitcli.autoencoders.load import load_autoencoder
from sitcli.latents.scaling import Scaling

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}


def test_every_byte_survives_pixels_through_float16():
    """Catches: a rounding that floors, or a scale of 255/256: some of 256 grey levels would
    move."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = load_autoencoder("pixels", **FP32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        latents = pixels.encode(to_signed(images)).to(dtype)
        assert np.array_equal(decode_latents(pixels, latents, Scaling()).numpy(), images)
