"""`sit sample --invert`: noise from images, labels, crops, and every refusal in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.inspect.stage import inspect
from sitcli.commands.sample.invert import invert, plan
from sitcli.errors import SitError, UsageError
from sitcli.images.sets import open_images
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.tools import InspectSettings
from sitcli.storage.rows import Rows
from tests.commands.sample.inverting import class_folder, go, invert_settings
from tests.tiny import (
    ENVIRONMENT,
    finish,
    make_run,
    make_store,
    pictures,
    use_patch_pca,
    write_folder,
    write_meta,
    write_samples,
)


def test_the_noise_is_that_of_the_sampler(run: Path, tmp_path: Path) -> None:
    """Catches: a time that runs the wrong way: drawn again from its noise by the sampler's own ODE,
    an image must come back."""
    import torch

    from sitcli.core.flow import Ode

    samples, _ = go(run, class_folder(tmp_path / "photos"), solver="rk4", steps=40, latents=True)
    checkpoint = open_checkpoint(run)
    network = checkpoint.network("ema", torch.device("cpu"))
    noise, y = torch.tensor(samples.rows.array("noise")), torch.from_numpy(samples.labels)
    with torch.no_grad():
        ode = Ode(solver="rk4", steps=100)
        *_, (_, x) = checkpoint.process.sample(network, noise, y, ode)
    np.testing.assert_allclose(x, samples.rows.array("latents"), atol=0.01)


def test_a_latent_store_needs_no_pictures(run: Path, tmp_path: Path) -> None:
    """Catches: latents encoded twice, or pictures asked for that are gone."""
    store = LatentStore.open(tmp_path / "tiny.h5")
    samples, figures = go(run, store.path, num=5, solver="dopri5", steps=None, latents=True)
    items = np.arange(5) * 24 // 5
    assert samples.labels.tolist() == store.labels[items].tolist()
    difference = samples.rows.array("latents") - store.batch(items).numpy()
    assert figures["latent_rms_error"] == pytest.approx(np.sqrt(np.mean(difference**2)), rel=1e-3)
    assert "psnr_to_originals" not in figures


def test_pictures_are_cropped_as_the_runs_were(tmp_path: Path) -> None:
    """Catches: ADM's crop whatever the store's; patch-pca's latents compared with the pixels."""
    run = make_run(tmp_path)
    use_patch_pca(run)
    meta = open_checkpoint(run).path / "meta.json"
    document = json.loads(meta.read_text())
    document["latents"]["crop"] = "resize"
    write_meta(meta, document)
    wide = write_folder(tmp_path / "wide", np.repeat(pictures(4, side=16)[0], 2, axis=2))
    samples, figures = go(run, wide, steps=40)
    assert samples.rows.array("noise").shape == (4, 4, 4, 4)
    assert samples.meta["preparation"] == "crop resize to 8"
    # The autoencoder loses more than the round trip does.
    assert figures["psnr_to_autoencoder"] is None or figures["psnr_to_autoencoder"] > 40
    assert figures["psnr_of_autoencoder_to_originals"] < 40


def test_labels(run: Path, tmp_path: Path) -> None:
    """Catches: a class of the images taken for another, or the null class counted as class 3."""
    folder = class_folder(tmp_path / "photos")
    assert go(run, folder, "a", classes="green")[0].labels.tolist() == [1] * 6
    flat = write_folder(tmp_path / "flat", pictures(4)[0])
    unlabelled, _ = go(run, flat, "b")
    assert unlabelled.meta["label_policy"] == "the null class, as the images have none"
    assert (unlabelled.labels.tolist(), unlabelled.meta["class_names"]) == ([0] * 4, [])
    finish(inspect(InspectSettings(path=unlabelled.directory, verify=True, device="cpu")))
    # A sample set keeps its classes: those of the first are the run's.
    again, _ = go(run, run.parents[1] / "a", "c")
    assert again.labels.tolist() == [1] * 6
    with pytest.raises(UsageError, match="takes one class"):
        go(run, folder, "d", classes="red,green")


def test_a_finished_set_is_kept_and_an_interrupted_one_begins_again(
    run: Path, tmp_path: Path
) -> None:
    """Catches: half a set taken for a whole one, or work done twice."""
    folder = class_folder(tmp_path / "photos")
    stage = invert(invert_settings(run, folder, batch_size=2))
    while getattr(next(stage), "done", 0) < 3:
        pass
    stage.close()
    assert not SampleSet.open(tmp_path / "out").complete
    samples, figures = go(run, folder, batch_size=2)
    assert samples.complete
    assert samples.evaluations == (6 * 40, 6)
    before = samples.path.stat().st_mtime_ns
    again, same = go(run, folder, batch_size=2)
    assert again.path.stat().st_mtime_ns == before
    assert same == figures
    with pytest.raises(UsageError, match="was made with steps 10, not 11"):
        go(run, folder, steps=11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sde": True}, "--sde has no effect with --invert"),
        ({"ddim": True}, "--ddim has no effect with --invert"),
        ({"cfg_scale": 2.0}, "--cfg-scale has no effect with --invert"),
        ({"labels": "random"}, "--labels has no effect with --invert"),
        ({"seed": 1}, "--seed has no effect with --invert"),
        ({"show_path": True}, "--show-path has no effect with --invert"),
        ({"wt": "kl"}, "--wt"),
        ({"solver": "euler-maruyama"}, "--solver euler-maruyama"),
        ({"solver": "dopri5", "steps": 3}, "--steps"),
        ({"classes": "teapot"}, "no class is called 'teapot'"),
    ],
)
def test_bad_options(run: Path, tmp_path: Path, options: dict, message: str) -> None:
    """Catches: an option accepted and ignored, or a traceback."""
    with pytest.raises(UsageError, match=message):
        go(run, class_folder(tmp_path / "photos"), **options)
    assert not (tmp_path / "out").exists()


def test_images_that_do_not_fit(run: Path, tmp_path: Path) -> None:
    """Catches: a traceback, or images of another size inverted as they are."""
    with pytest.raises(SitError, match="does not exist"):
        go(run, tmp_path / "nowhere")
    with pytest.raises(SitError, match="images of 6 x 6 pixels, and the run's are 8 x 8"):
        go(run, write_samples(tmp_path / "small", pictures(3, side=6)[0]))
    with pytest.raises(SitError, match="latents 3 x 4 x 4"):
        go(run, make_store(tmp_path / "small.h5", side=4).path)
    with pytest.raises(SitError, match=r"000\.png.*is 6 x 6 pixels, not 8 x 8"):
        go(run, write_folder(tmp_path / "none", pictures(2, side=6)[0]))  # crop none, as the store
    meta = open_checkpoint(run).path / "meta.json"
    write_meta(meta, json.loads(meta.read_text()) | {"label_dropout": 0})
    with pytest.raises(UsageError, match="--label-dropout 0 did not train") as caught:
        go(run, write_folder(tmp_path / "flat", pictures(2)[0]))
    assert "--classes" in caught.value.hint


def test_the_command(run: Path, tmp_path: Path) -> None:
    """Catches: a command line that draws instead, or a plan that is not what happens."""
    class_folder(tmp_path / "photos")
    words = ["sample", "--invert=photos", "--num=3", "--steps=4", "--json", "--device=cpu"]

    def call(*more: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "sitcli", *words, *more],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    planned = call("--dry-run")
    result = call()
    assert result["evaluations_per_image"] == planned["evaluations"] == 16
    assert result["path"] == planned["out"]
    assert result["path"].startswith("samples/tiny-step-0000007-invert-")
    assert result["num"] == 3
    assert plan(invert_settings(run, tmp_path / "photos")).data["num"] == 6


def test_a_set_of_0_7_is_found_again(run: Path, tmp_path: Path) -> None:
    """Catches: a finished set that is refused because later versions hash the pictures' contents
    too, and other pictures that are not."""
    photos = class_folder(tmp_path / "photos")
    samples, figures = go(run, photos)
    first = open_images(photos, size=(8, 8), crop="none").first_fingerprint
    with Rows(samples.path, writable=True) as file:
        file.set_attrs(meta=file.attrs["meta"] | {"images": first})
    assert go(run, photos)[1] == figures
    with Rows(samples.path, writable=True) as file:
        file.set_attrs(meta=file.attrs["meta"] | {"images": "0" * 64})
    with pytest.raises(UsageError, match="was made with images 0000"):
        go(run, photos)
