"""What all autoencoders share: bytes and signed values, scaling, and decoding in slices."""

from __future__ import annotations

import numpy as np
import torch

from sitcli.autoencoders import base
from sitcli.autoencoders.base import decode_latents, encode_latents, to_signed, to_uint8
from sitcli.autoencoders.load import load_autoencoder
from sitcli.latents.scaling import Scaling
from tests.autoencoders.files import smooth_images, tiny_kl

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}


def test_to_uint8_clamps_overshoot():
    """Catches: a decoder's overshoot that wraps around, so that white turns black."""
    assert to_uint8(torch.tensor([-1.5, 1.5]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_scaling_per_channel_and_shift_are_undone():
    """Catches: a division along the wrong axis or a forgotten shift, which would tint every
    picture."""
    images = smooth_images(2, 8)
    pixels = load_autoencoder("pixels", **FP32)
    factor, shift = (torch.tensor(v).reshape(-1, 1, 1) for v in ([0.5, 2.0, 4.0], [0.25, -1.0, 0]))
    for scaling, scaled in (
        (Scaling([0.5, 2.0, 4.0], 0.25), (to_signed(images) - 0.25) * factor),
        (Scaling(0.5, [0.25, -1.0, 0.0]), (to_signed(images) - shift) * 0.5),
    ):
        assert np.array_equal(decode_latents(pixels, scaled, scaling).numpy(), images)
        torch.testing.assert_close(encode_latents(pixels, images, scaling), scaled)


def test_decoding_in_slices_is_decoding_at_once(tmp_path, monkeypatch):
    """Catches: a slice that is dropped, repeated or out of order, which would mislabel samples."""
    tiny_kl().save_pretrained(tmp_path)
    vae = load_autoencoder(str(tmp_path), **FP32)
    latents = torch.randn(5, 4, 4, 4)
    whole = vae.decode(latents)
    monkeypatch.setitem(base.PIXELS_PER_CALL, "cpu", 2 * 8 * 8)
    torch.testing.assert_close(vae.decode(latents), whole)
