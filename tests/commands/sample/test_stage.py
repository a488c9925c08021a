"""`sit sample`: the same images whatever the batch, under every sampler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sitcli import names
from sitcli.commands.sample.stage import plan
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import UsageError
from sitcli.settings.sample import SampleSettings
from tests.tiny import draw, make_run


@pytest.mark.parametrize("options", [{}, {"sde": True}])
def test_images_do_not_depend_on_the_batch(run: Path, options: dict) -> None:
    """Catches: noise drawn per batch instead of per image, in the start or in the SDE's steps."""
    reference = draw(run, "b8", batch_size=8, latents=True, **options)
    for size in (1, 3):
        other = draw(run, f"b{size}", batch_size=size, latents=True, **options)
        difference = np.abs(
            other.rows.array("latents").astype(np.float64) - reference.rows.array("latents")
        )
        assert difference.max() < 1e-4
    more = draw(run, "more", num=11, **options)
    assert np.abs(more.images[:8].astype(int) - reference.images).max() <= 1
    assert not np.array_equal(draw(run, "seed", seed=1, **options).images, reference.images)


def test_no_two_images_are_equal(run: Path) -> None:
    """Catches: one seed for all images of a batch."""
    assert len(np.unique(draw(run, "all").images.reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize("wt", names.WTS)
@pytest.mark.parametrize("last_step", names.LAST_STEPS)
def test_every_wt_and_last_step(run: Path, wt: str, last_step: str) -> None:
    """Catches: a choice the options accept and the sampler does not know, or a NaN."""
    samples = draw(run, "out", num=2, sde=True, wt=wt, last_step=last_step)
    assert samples.meta["evaluations_per_image"] == 4
    assert samples.complete


@pytest.mark.parametrize("prediction", names.PREDICTIONS)
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_every_model_samples(tmp_path: Path, interpolant: str, prediction: str) -> None:
    """Catches: a NaN at an end of the interval for a trained kind of model."""
    run = make_run(tmp_path, process=Flow(interpolant=interpolant, prediction=prediction))
    for i, options in enumerate([{}, {"sde": True}, {"sde": True, "solver": "heun"}]):
        assert draw(run, f"out{i}", num=2, **options).complete


@pytest.fixture
def chain_run(tmp_path: Path) -> Path:
    """A run of a DiT model: twice the latent's channels, for the variance."""
    return make_run(tmp_path, process=Diffusion())


def test_chain_samplers(chain_run: Path) -> None:
    """Catches: a sampler of the chain that cannot be typed, or costs or notes something else."""
    default = draw(chain_run, "a").meta
    assert (default["mode"], default["steps"], default["evaluations_per_image"]) == ("ddpm", 4, 4)
    assert "solver" not in default
    ddim = draw(chain_run, "b", ddim=True, cfg_scale=2.0)
    assert (ddim.meta["eta"], ddim.meta["evaluations_per_image"]) == (0.0, 8)
    noisy = draw(chain_run, "c", ddim=True, cfg_scale=2.0, eta=0.5)
    assert not np.array_equal(noisy.images, ddim.images)
    # Heun's last step is the jump to the data.
    assert draw(chain_run, "d", ode=True).meta["evaluations_per_image"] == 7
    assert draw(chain_run, "e", sde=True, wt="kl").meta["evaluations_per_image"] == 4
    for options, evaluations in [({}, 4), ({"ddim": True}, 4), ({"ode": True}, 7)]:
        planned = plan(SampleSettings(checkpoint=chain_run, steps=4, device="cpu", **options))
        assert planned.data["evaluations"] == evaluations
    with pytest.raises(UsageError, match="the chain has 1000 steps"):
        draw(chain_run, "f", steps=1001)
    with pytest.raises(UsageError, match="eta is at most 1"):
        draw(chain_run, "f", ddim=True, eta=1.5)
    for options in ({"wt": "kl"}, {"solver": "heun"}, {"eta": 1.0}):
        with pytest.raises(UsageError, match="has no effect with --ddpm"):
            draw(chain_run, "f", **options)


@pytest.mark.parametrize("options", [{}, {"ddim": True, "eta": 1.0}])
def test_chain_images_do_not_depend_on_the_batch(chain_run: Path, options: dict) -> None:
    """Catches: the chain's noise drawn per batch instead of per image."""
    whole = draw(chain_run, "whole", latents=True, **options)
    parts = draw(chain_run, "parts", latents=True, batch_size=3, **options)
    difference = whole.rows.array("latents") - parts.rows.array("latents")
    assert np.abs(difference).max() < 1e-4 * np.abs(whole.rows.array("latents")).max()
