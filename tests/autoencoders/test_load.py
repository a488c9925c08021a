"""An autoencoder by name or spec, and what is refused in one line."""

from __future__ import annotations

import subprocess

import pytest
import torch

from sitcli.autoencoders.load import from_spec, load_autoencoder
from sitcli.autoencoders.patch_pca import fit_patch_pca
from sitcli.errors import SitError, UsageError
from tests.autoencoders.files import smooth_images

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}


def test_embedded_errors():
    """Catches: a wrong size, number of channels or name that ends in a shape error inside torch."""
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


def test_files_that_are_not_autoencoders(tmp_path):
    """Catches: an error of several lines, and a pickle whose code is run."""
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": torch.zeros(2)}, tmp_path / "tensors.pt")
    torch.save({"f": subprocess.Popen}, tmp_path / "code.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    expected = {
        "text.pt": "cannot read",
        "bad.safetensors": "cannot read",
        "tensors.pt": "does not hold autoencoder weights",
        "code.pt": "could run its code",
        "empty": "holds no autoencoder",
        "unet": "holds a 'UNet2DModel'",
        "broken": "cannot load the autoencoder",
    }
    for name, message in expected.items():
        with pytest.raises(SitError, match=message) as failure:
            load_autoencoder(str(tmp_path / name), **FP32)
        assert "\n" not in failure.value.message
