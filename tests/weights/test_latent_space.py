"""The latents that imported weights take."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sitcli.commands.import_weights import import_weights
from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling
from sitcli.latents.statistics import read_statistics
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.weights import ImportSettings
from sitcli.weights.latent_space import (
    SD_VAE_SPEC,
    VA_VAE_SPEC,
    autoencoder_of,
    is_sd_vae,
)
from tests.tiny import finish
from tests.weights.official_files import CONFIG, bring, equal, official, save


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
    scaling = read_statistics(file, 2, multiplier=0.5)
    latents = torch.tensor([3.0, 6.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(scaling.normalise(latents).flatten(), torch.tensor([2.0, 1.0]))
    save(file, dict(latents_bias=mean.view(1, 2, 1, 1), latents_scale=(1 / std).view(1, 2, 1, 1)))
    assert read_statistics(file, 2) == Scaling([2.0, 0.25], [1.0, -2.0])
    for wrong in (
        dict(mean=mean), [mean, std], dict(mean=mean, std=std * 0), dict(mean=mean, std=-std),
        dict(mean=mean * torch.inf, std=std), dict(mean=mean[:1], std=std),
    ):  # fmt: skip
        save(file, wrong)
        with pytest.raises(SitError, match="mean and a positive std for each of 2 channels"):
            read_statistics(file, 2)


def test_a_network_brings_its_own_statistics(tmp_path: Path) -> None:
    """Catches: REPA-E's weights refused for their batch norm, its eps added where its sampler adds
    none, the last weights' statistics for the average's, and an autoencoder taken for granted."""
    state = official(dataclasses.replace(CONFIG, out_channels=4))
    mean, variance = torch.tensor([1.0, 0.0, -1.0, 2.0]), torch.tensor([4.0, 1.0, 0.25, 9.0])
    counted = {"bn.num_batches_tracked": torch.tensor(9)}
    own = {"bn.running_mean": mean, "bn.running_var": variance, **counted}
    last = {"bn.running_mean": mean + 1, "bn.running_var": variance + 1, **counted}
    extra = {"projectors.0.0.weight": torch.ones(3, 3)}
    file = save(tmp_path / "0400000.pt", dict(model=state | last | extra, ema=state | own | extra))
    result = finish(import_weights(ImportSettings(weights=file, out_dir=tmp_path / "run")))
    assert any("--vae" in text for text in result.data["warnings"])
    run = open_checkpoint(tmp_path / "run")
    assert (run.meta["lineage"], run.meta["time_convention"]) == ("repa", "paper")
    assert run.scaling == Scaling([0.5, 1.0, 2.0, 1 / 3], [1.0, 0.0, -1.0, 2.0])
    assert equal(run.weights("ema"), state)
    for wrong in (
        dict(own, **{"bn.running_var": -variance}),
        dict(own) | {"bn.running_mean": mean[:2]},
    ):
        save(file, {"ema": state | wrong})
        with pytest.raises(SitError, match="not statistics of 4 channels"):
            bring(file, tmp_path / "c")
