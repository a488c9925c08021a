"""The figures, the set and the grid of a round trip through the noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sitcli.commands.evaluate.stage import evaluate
from sitcli.commands.inspect.stage import inspect
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.tools import InspectSettings
from tests.commands.sample.inverting import class_folder, go
from tests.tiny import finish, make_run, pictures


@pytest.mark.parametrize("process", [Flow(), Flow(prediction="data"), Diffusion()])
def test_the_round_trip_improves_with_steps(tmp_path: Path, process: Flow) -> None:
    """Catches: a way back over other times, other labels or from another noise, for any process."""
    run = make_run(tmp_path, process=process)
    images = class_folder(tmp_path / "photos")
    errors = [
        go(run, images, f"s{steps}", steps=steps)[1]["latent_relative_error"]
        for steps in (10, 20, 40)
    ]
    assert errors[0] > errors[1] > errors[2]
    best = go(run, images, "best", solver="rk4", steps=80)[1]
    assert best["latent_relative_error"] < 1e-3
    assert best["psnr_to_originals"] is None or best["psnr_to_originals"] > 50


def test_the_set_that_is_written(run: Path, tmp_path: Path) -> None:
    """Catches: noise, images or figures that are not those of the round trip, rows out of order, or
    a set the other commands cannot read."""
    folder = class_folder(tmp_path / "photos")
    samples, figures = go(run, folder, steps=60, latents=True, png=True, npz=True, batch_size=4)
    noise, latents = samples.rows.array("noise"), samples.rows.array("latents")
    assert noise.shape == latents.shape == (6, 3, 8, 8)
    assert noise.dtype == np.float32
    images, labels = pictures(6, seed=3)
    expected = np.concatenate([images[labels == c] for c in (2, 1, 0)])  # blue, green, red
    assert np.abs(samples.images.astype(int) - expected).max() <= 1
    assert samples.labels.tolist() == [2, 2, 1, 1, 0, 0]
    error = latents - (expected.transpose(0, 3, 1, 2) / 127.5 - 1)
    assert figures["latent_rms_error"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.05)
    assert figures["noise_mean"] == pytest.approx(noise.mean(), abs=1e-5)
    assert figures["noise_std"] == pytest.approx(noise.std(), rel=1e-5)
    assert samples.meta["evaluations_per_image"] == 2 * 2 * 60
    assert samples.meta["label_policy"] == "their own"
    document = json.loads((samples.directory / "invert.json").read_text())
    assert document["figures"] == figures
    assert document["format_version"] == 1
    assert (samples.directory / "png" / "000005_red.png").exists()
    assert (samples.directory / "samples.npz").exists()
    assert Image.open(samples.directory / "grid.png").height > 3 * 64
    finish(inspect(InspectSettings(path=samples.directory, verify=True, device="cpu")))
    settings = EvaluateSettings(
        samples=[samples.directory], reference=folder, features="pixels", device="cpu"
    )
    assert finish(evaluate(settings)).data["figures"][0]["value"] < 0.01
