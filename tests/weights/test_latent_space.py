"""The latents that imported weights take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sitcli.errors import SitError, UsageError
from sitcli.weights.latent_space import (
    SD_VAE_SPEC,
    VA_VAE_SPEC,
    autoencoder_of,
    is_sd_vae,
    read_statistics,
)
from tests.weights.official_files import save


def test_the_usual_autoencoder_has_the_weights_channels() -> None:
    """Catches: Stable Diffusion's VAE taken for latents of 32 channels, or VA-VAE's for those of
    another lineage."""
    both = (VA_VAE_SPEC, SD_VAE_SPEC)
    assert autoencoder_of("x", None, channels=32, usual=both)[0] == VA_VAE_SPEC
    assert autoencoder_of("x", None, channels=4, usual=both)[0] == SD_VAE_SPEC
    with pytest.raises(UsageError, match="of 32 channels"):
        autoencoder_of("x", None, channels=32, usual=(SD_VAE_SPEC,))
    named, _ = autoencoder_of("x", "stabilityai/sd-vae-ft-mse", channels=4, usual=both)
    assert named["name"] == "stabilityai/sd-vae-ft-mse"
    assert is_sd_vae(named)
    assert not is_sd_vae(VA_VAE_SPEC)
    with pytest.raises(UsageError, match="4 channels, and pixels has 3"):
        autoencoder_of("x", "pixels", channels=4, usual=both)


def test_statistics(tmp_path: Path) -> None:
    """Catches: a factor for a mean, a shift of the wrong sign, or a channel divided by 0."""
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])
    file = save(tmp_path / "latents_stats.pt", dict(mean=mean.view(1, 2, 1, 1), std=std))
    scaling = read_statistics(file, 2, 0.5)
    latents = torch.tensor([3.0, 6.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(scaling.normalise(latents).flatten(), torch.tensor([2.0, 1.0]))
    for wrong in (
        dict(mean=mean), [mean, std], dict(mean=mean, std=std * 0), dict(mean=mean, std=-std),
        dict(mean=mean * torch.inf, std=std), dict(mean=mean[:1], std=std),
    ):  # fmt: skip
        save(file, wrong)
        with pytest.raises(SitError, match="mean and a positive std for each of 2 channels"):
            read_statistics(file, 2, 1.0)
