"""Autoencoders: exactness, interfaces, identity of weights, and errors that can be acted on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sitcli.errors import SitError, UsageError
from sitcli.io.autoencoder import (
    decode_latents,
    fit_patch_pca,
    from_spec,
    load_autoencoder,
    to_signed,
    to_uint8,
)

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}


def smooth_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random low-frequency pictures (N, size, size, 3) uint8: compressible, as photographs are."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return fine.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_every_byte_survives_pixels_through_float16():
    """A rounding that floors, or a scale of 255/256, would shift some of the 256 grey levels."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = load_autoencoder("pixels", **FP32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        latents = pixels.encode(to_signed(images)).to(dtype)
        assert np.array_equal(decode_latents(pixels, latents, 1.0).numpy(), images)


def test_to_uint8_clamps_overshoot():
    """Without the clamp a decoder's overshoot wraps around: white turns black."""
    assert to_uint8(torch.tensor([-1.5, 1.5]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_patch_pca_latents_are_white_and_complete_basis_is_lossless():
    """A wrong patch order, mean or whitening shows as correlated channels or a lossy round trip."""
    images = smooth_images(40, 16)
    images ^= np.random.default_rng(0).integers(0, 8, images.shape, dtype=np.uint8)
    pca = fit_patch_pca(images, patch=2, channels=12)
    latents = pca.encode(to_signed(images))
    assert latents.shape == (40, 12, 8, 8)
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(
        flat @ flat.T / flat.shape[1], torch.eye(12).double(), atol=1e-3, rtol=0
    )
    assert np.array_equal(decode_latents(pca, latents, 1.0).numpy(), images)
    assert pca.spec["explained_variance"] == pytest.approx(1.0)


def test_patch_pca_keeps_the_components_that_matter():
    """Keeping the smallest eigenvalues instead of the largest gives a grey reconstruction."""
    images = smooth_images(20, 32)
    pca = fit_patch_pca(images, patch=4, channels=12)
    decoded = decode_latents(pca, pca.encode(to_signed(images)).half(), 1.0).numpy()
    error = np.square(decoded.astype(float) - images).mean()
    assert error < 0.01 * images.var()
    assert pca.spec["explained_variance"] > 0.99


def test_patch_pca_does_not_depend_on_order_or_batching():
    """Sums in arrival order would give each number of workers another basis, and another store."""
    images = smooth_images(30, 16)
    whole = fit_patch_pca([images], patch=4, channels=6)
    single = fit_patch_pca(images[::-1], patch=4, channels=6)
    assert whole.spec == single.spec


def test_patch_pca_of_flat_pictures_stays_finite():
    """Whitening a component of no variance divides by zero."""
    images = np.full((3, 8, 8, 3), 77, dtype=np.uint8)
    pca = fit_patch_pca(images, patch=4, channels=5)
    latents = pca.encode(to_signed(images))
    assert latents.abs().max() < 1e-3
    assert np.array_equal(decode_latents(pca, latents, 1.0).numpy(), images)


def test_patch_pca_comes_back_from_its_spec():
    """A store whose spec loses the patch size or the arrays could never be decoded."""
    images = smooth_images(10, 16)
    pca = fit_patch_pca(images, patch=4, channels=6)
    again = from_spec(pca.spec, pca.arrays, **FP32)
    latents = pca.encode(to_signed(images))
    assert torch.equal(pca.decode(latents), again.decode(latents))
    damaged = {**pca.arrays, "std": pca.arrays["std"] * 2}
    with pytest.raises(SitError, match="damaged"):
        from_spec(pca.spec, damaged, **FP32)


def test_embedded_errors():
    """Each of these would otherwise end in a shape error deep inside torch."""
    images = smooth_images(2, 16)
    with pytest.raises(UsageError, match="only 12 components"):
        fit_patch_pca(images, patch=2, channels=13)
    with pytest.raises(UsageError, match="no images"):
        fit_patch_pca([], patch=2, channels=3)
    pca = fit_patch_pca(images, patch=4, channels=6)
    with pytest.raises(UsageError, match="multiple of 4"):
        pca.encode(torch.zeros(1, 3, 16, 18))
    with pytest.raises(UsageError, match="fitted on the images"):
        load_autoencoder("patch-pca", **FP32)
    with pytest.raises(UsageError, match="built in"):
        from_spec(pca.spec, pca.arrays, override="pixels", **FP32)
    for name in ("pixel", "no/such/../folder", "/nowhere/vae", "vae.safetensors"):
        with pytest.raises(UsageError, match="no autoencoder"):
            load_autoencoder(name, **FP32)


def test_scaling_per_channel_and_shift_are_undone():
    """Dividing along the wrong axis, or forgetting the shift, tints every decoded picture."""
    images = smooth_images(2, 8)
    pixels = load_autoencoder("pixels", **FP32)
    pixels.shift = 0.25
    scaling = [0.5, 2.0, 4.0]
    scaled = (to_signed(images) - 0.25) * torch.tensor(scaling).reshape(3, 1, 1)
    assert np.array_equal(decode_latents(pixels, scaled, scaling).numpy(), images)
