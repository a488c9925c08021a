"""`sit sample` on weights and noise from elsewhere: reversed time, --noise, --latents-only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.inspect.stage import inspect
from sitcli.commands.newest import newest_samples
from sitcli.commands.sample.stage import sample
from sitcli.core.flow import Flow, Ode
from sitcli.core.reversed_time import ReversedTime
from sitcli.errors import SitError, UsageError
from sitcli.images.sets import open_images
from sitcli.machine.seeds import Philox
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.settings.tools import InspectSettings
from tests.tiny import finish, write_meta

SHAPE = (5, 3, 8, 8)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.npy"
    np.save(path, np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    return path


def reverse(run: Path) -> Path:
    """The same run, said to be of weights whose time runs from noise to data."""
    meta = open_checkpoint(run).path / "meta.json"
    facts = json.loads(meta.read_text()) | {"time_convention": "reversed"}
    write_meta(meta, facts)
    return run


def draw(run: Path, out: str, **more) -> SampleSet:
    settings = SampleSettings(
        checkpoint=run, out=run.parent / out, device="cpu", precision="fp32", **more
    )
    finish(sample(settings))
    return SampleSet.open(settings.out)


def test_official_weights_are_integrated_as_their_sampler_does(run: Path, noise: Path) -> None:
    """Catches: time or sign turned once too often: a loop in the official convention, from t = 0 at
    the noise up to 1 with dx = u dt guided by the null class, must agree."""
    network = open_checkpoint(run).network("ema", torch.device("cpu"))
    x, y = torch.from_numpy(np.load(noise)), torch.tensor([0, 1, 2, 0, 1])
    null = torch.full_like(y, 3)
    with torch.no_grad():
        for k in range(20):
            t = torch.full((5,), k / 20)
            c, u = network(x, t, y), network(x, t, null)
            x = x + (u + 2.5 * (c - u)) / 20
    samples = draw(
        reverse(run),
        "x.h5",
        noise=noise,
        latents_only=True,
        solver="euler",
        steps=20,
        cfg_scale=2.5,
    )
    np.testing.assert_allclose(samples.rows.array("latents"), x.numpy(), atol=2e-6)


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
def test_reversed_time_turns_the_sign_of_a_velocity_alone(prediction: str) -> None:
    """Catches: a sign for score or noise, or none for velocity: for Gaussian data N(m, 1/4) the
    exact output of either convention is known, and the data must come out the same."""
    flow, m = Flow(prediction=prediction), 0.7

    def exact(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        path = flow.path(t, x)
        variance = path.alpha**2 / 4 + path.sigma**2
        eps = path.sigma * (x - path.alpha * m) / variance
        x_star = m + path.alpha / 4 * (x - path.alpha * m) / variance
        if prediction == "velocity":
            return path.d_alpha * x_star + path.d_sigma * eps
        return eps if prediction == "noise" else -(x - path.alpha * m) / variance

    sign = -1 if prediction == "velocity" else 1

    def official(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return sign * exact(x, 1 - t, y)

    start, y = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    ends = [
        list(flow.sample(network, start, y, Ode(solver="heun", steps=40)))[-1][1]
        for network in (exact, ReversedTime(official, prediction=prediction))
    ]
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[0], m + start / 2, atol=2e-3, rtol=0)


def test_given_noise_is_where_each_image_begins(run: Path, noise: Path) -> None:
    """Catches: rows given to other images after a batch; noise that changes what an SDE draws
    later; a set that goes on with other noise than it was begun with."""
    first = draw(run, "a", noise=noise, latents=True, batch_size=2)
    assert first.num == 5
    alone = draw(run, "b", noise=noise, latents=True, batch_size=5)
    np.testing.assert_allclose(first.rows.array("latents"), alone.rows.array("latents"), atol=1e-5)
    drawn = draw(run, "c", num=5, latents=True, sde=True, steps=10)
    process = open_checkpoint(run).process
    assert process.interpolant == "linear"
    # The noise of the seed, written out and given, is the noise of the seed.
    own = noise.with_name("own.npy")
    np.save(own, Philox(0).samples(np.arange(5)).normal(*SHAPE[1:]).numpy())
    given = draw(run, "d", noise=own, latents=True, sde=True, steps=10)
    np.testing.assert_array_equal(given.rows.array("latents"), drawn.rows.array("latents"))
    with pytest.raises(UsageError, match="drawn with noise"):
        draw(run, "a", noise=own, latents=True)
    with pytest.raises(UsageError, match="drawn with noise"):
        draw(run, "a", num=5, latents=True)


def test_latents_alone_need_no_autoencoder_and_are_called_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: an autoencoder loaded for nothing; a set without images that crashes its readers or
    is taken for the newest samples."""
    meta = open_checkpoint(run).path / "meta.json"
    facts = json.loads(meta.read_text())
    facts["latents"]["autoencoder"]["kind"] = "kl"
    facts["latents"]["autoencoder"]["name"] = str(tmp_path / "nowhere")
    write_meta(meta, facts)
    monkeypatch.chdir(tmp_path)
    samples = draw(run, str(tmp_path / "samples" / "x"), num=3, latents_only=True)
    assert samples.images is None
    assert samples.rows.array("latents").dtype == np.float32
    assert samples.meta["latents_kept"]
    assert sorted(p.name for p in samples.directory.iterdir()) == ["meta.json", "samples.h5"]
    with pytest.raises(SitError, match="latents only"):
        open_images(samples.path)
    with pytest.raises(SitError, match="no sample set"):
        newest_samples()
    told = finish(inspect(InspectSettings(path=samples.path, verify=True, device="cpu")))
    assert ["images", "3, latents only, latents kept"] in told.tables[0].rows
    with pytest.raises(UsageError, match="latents only"):
        finish(
            inspect(InspectSettings(path=samples.path, preview=tmp_path / "p.png", device="cpu"))
        )
    with pytest.raises(UsageError, match="--npz"):
        draw(run, "y", latents_only=True, npz=True)


@pytest.mark.parametrize(
    ("array", "more", "message"),
    [
        (np.zeros((2, 4, 8, 8), np.float32), {}, "2 x 4 x 8 x 8, not N x 3 x 8 x 8"),
        (np.zeros((0, 3, 8, 8), np.float32), {}, "not N x"),
        (np.zeros((2, 3, 8, 8), np.int64), {}, "array of floats"),
        (np.full((2, 3, 8, 8), np.nan, np.float32), {}, "not finite"),
        (np.array([{}], object), {}, "cannot read"),
        (np.zeros((2, 3, 8, 8), np.float32), {"num": 3}, "the noise of 2 images"),
    ],
)
def test_noise_that_is_none_is_refused(
    run: Path, tmp_path: Path, array: np.ndarray, more: dict, message: str
) -> None:
    """Catches: a traceback, unpickled objects, or images of nan."""
    np.save(tmp_path / "n.npy", array)
    with pytest.raises(SitError, match=message):
        draw(run, "x", noise=tmp_path / "n.npy", latents_only=True, **more)


def test_imported_weights_say_which_channels_and_which_weights(run: Path) -> None:
    """Catches: a figure of published weights guided on other channels than the published one, or a
    missing average that is taken for damage."""
    meta = open_checkpoint(run).path / "meta.json"
    facts = json.loads(meta.read_text())
    facts |= {"guided_channels": "3", "lineage": "official-sit", "weights_source": {"path": "x"}}
    write_meta(meta, facts)
    assert draw(run, "a", num=2, cfg_scale=1.5, steps=2).meta["cfg_channels"] == "3"
    assert draw(run, "b", num=2, cfg_scale=1.5, cfg_channels="all", steps=2).meta[
        "cfg_channels"
    ] == ("all")
    (meta.parent / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(SitError, match="no model weights") as caught:
        draw(run, "c", num=2, weights="model")
    assert caught.value.hint == "use --weights ema"
    facts["time_convention"] = "sideways"
    write_meta(meta, facts)
    with pytest.raises(SitError, match="sideways"):
        draw(run, "d", num=2)
