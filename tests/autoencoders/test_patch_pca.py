"""patch-pca: white latents, a lossless complete basis, and a fit that repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sitcli.autoencoders.base import decode_latents, to_signed
from sitcli.autoencoders.load import from_spec
from sitcli.autoencoders.patch_pca import fit_patch_pca
from sitcli.errors import SitError
from sitcli.latents.scaling import Scaling
from tests.autoencoders.files import smooth_images

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}


def test_patch_pca_latents_are_white_and_complete_basis_is_lossless():
    """Catches: a wrong patch order, mean or whitening: correlated channels or a lossy round
    trip."""
    images = smooth_images(40, 16)
    images ^= np.random.default_rng(0).integers(0, 8, images.shape, dtype=np.uint8)
    pca = fit_patch_pca(images, patch=2, channels=12)
    latents = pca.encode(to_signed(images))
    assert latents.shape == (40, 12, 8, 8)
    assert latents.is_contiguous()
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(
        flat @ flat.T / flat.shape[1], torch.eye(12).double(), atol=1e-3, rtol=0
    )
    assert np.array_equal(decode_latents(pca, latents, Scaling()).numpy(), images)
    assert pca.spec["explained_variance"] == pytest.approx(1.0)


def test_patch_pca_keeps_the_components_that_matter():
    """Catches: the smallest eigenvalues kept instead of the largest: a grey reconstruction."""
    images = smooth_images(20, 32)
    pca = fit_patch_pca(images, patch=4, channels=12)
    decoded = decode_latents(pca, pca.encode(to_signed(images)).half(), Scaling()).numpy()
    error = np.square(decoded.astype(float) - images).mean()
    assert error < 0.01 * images.var()
    assert pca.spec["explained_variance"] > 0.99


def test_patch_pca_does_not_depend_on_order_or_batching():
    """Catches: sums in order of arrival, which give each number of workers another basis."""
    images = smooth_images(30, 16)
    whole = fit_patch_pca([images], patch=4, channels=6)
    single = fit_patch_pca(images[::-1], patch=4, channels=6)
    assert whole.spec == single.spec


def test_patch_pca_of_flat_pictures_stays_finite():
    """Catches: a division by the variance of a component that has none."""
    images = np.full((3, 8, 8, 3), 77, dtype=np.uint8)
    pca = fit_patch_pca(images, patch=4, channels=5)
    latents = pca.encode(to_signed(images))
    assert latents.abs().max() < 1e-3
    assert np.array_equal(decode_latents(pca, latents, Scaling()).numpy(), images)


def test_patch_pca_comes_back_from_its_spec():
    """Catches: a spec that loses the patch size or the arrays, so that a store cannot be
    decoded."""
    images = smooth_images(10, 16)
    pca = fit_patch_pca(images, patch=4, channels=6)
    again = from_spec(pca.spec, pca.arrays, **FP32)
    latents = pca.encode(to_signed(images))
    assert torch.equal(pca.decode(latents), again.decode(latents))
    damaged = {**pca.arrays, "std": pca.arrays["std"] * 2}
    with pytest.raises(SitError, match="damaged"):
        from_spec(pca.spec, damaged, **FP32)
