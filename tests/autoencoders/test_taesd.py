"""TAESD's pair of files, against diffusers and on photographs."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
import torch

from sitcli.autoencoders.base import decode_latents, to_signed
from sitcli.autoencoders.load import from_spec, load_autoencoder
from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling
from tests.autoencoders.files import write_taesd
from tests.tiny import SHARED

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}


@pytest.mark.parametrize("channels", [4, 16])
def test_taesd_files_equal_diffusers(tmp_path, channels):
    """Catches: a missed ReLU, stride or clamp, or pictures in [0, 1]: diffusers' code is
    independent."""
    from diffusers import AutoencoderTiny

    network = AutoencoderTiny(latent_channels=channels).eval()
    encoder, decoder = write_taesd(tmp_path, network)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = network.encode(images).latents
        pictures = network.decode(5 * latents).sample
    hashes = set()
    for path in (tmp_path, encoder, decoder):
        vae = load_autoencoder(str(path), **FP32)
        assert (vae.latent_channels, vae.downsample, vae.deterministic) == (channels, 8, True)
        torch.testing.assert_close(vae.encode(images), latents)
        torch.testing.assert_close(vae.decode(5 * latents), pictures)
        assert from_spec(vae.spec, {}, **FP32).spec == vae.spec
        hashes.add(vae.spec["hash"])
    assert len(hashes) == 1


def test_taesd_errors(tmp_path):
    """Catches: half a pair, two pairs, or two halves that do not match loaded as something else."""
    from diffusers import AutoencoderTiny

    encoder, decoder = write_taesd(tmp_path, AutoencoderTiny())
    other = tmp_path / "other"
    other.mkdir()
    _, decoder16 = write_taesd(other, AutoencoderTiny(latent_channels=16))
    weights = torch.load(encoder)
    (tmp_path / "x_encoder.pth").write_bytes(encoder.read_bytes())
    with pytest.raises(SitError, match=r"x_decoder\.pth is not beside it"):
        load_autoencoder(str(tmp_path / "x_encoder.pth"), **FP32)
    (tmp_path / "x_decoder.pth").write_bytes(decoder16.read_bytes())
    with pytest.raises(SitError, match="do not belong together"):
        load_autoencoder(str(tmp_path / "x_decoder.pth"), **FP32)
    with pytest.raises(UsageError, match="several autoencoders"):
        load_autoencoder(str(tmp_path), **FP32)
    torch.save({k: v for k, v in weights.items() if k != "5.conv.2.bias"}, encoder)
    with pytest.raises(SitError, match="not laid out as"):
        load_autoencoder(str(decoder), **FP32)


@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="needs ../shared/weights (TAEF2)")
def test_taef2_on_photographs():
    """Catches: a GroupNorm branch left out, or in 8 groups (25.2 dB) instead of 4 (26.4 dB)."""
    from PIL import Image

    archive = SHARED / "data" / "imagenet-sample-160.tar"
    vae = load_autoencoder(str(SHARED / "weights" / "taef2_decoder.pth"), **FP32)
    assert (vae.latent_channels, vae.downsample) == (32, 8)
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile()][::40]
        images = np.stack(
            [
                np.asarray(Image.open(tar.extractfile(m)).convert("RGB").resize((128, 128)))
                for m in members
            ]
        )
    decoded = decode_latents(vae, vae.encode(to_signed(images)).half(), Scaling()).numpy()
    error = np.square(decoded.astype(float) - images).mean(axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error)).mean() > 26
