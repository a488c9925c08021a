"""Sampling: the same images whatever the batch or the interruption, and every option at work."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sitcli import names
from sitcli.autoencoders.patch_pca import fit_patch_pca
from sitcli.commands.sample.stage import plan, sample
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.latents.store import LatentStore
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import Transformer
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.meta import checkpoint_meta, latent_facts
from sitcli.runs.run_dir import RunDir
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.storage.rows import MISSING, Rows
from sitcli.storage.tensors import write_tensors
from tests.tiny import ENVIRONMENT, finish, make_store, pictures

CONFIG = TransformerConfig(
    input_size=8, patch=2, channels=3, out_channels=3, width=32, depth=2, heads=2, num_classes=3
)


def random_network(config: TransformerConfig) -> Transformer:
    torch.manual_seed(0)
    network = Transformer(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return network


def make_run(folder: Path, *, process: Flow | None = None, classes: bool = True) -> Path:
    """A run with one checkpoint of random weights: sampling does not ask how they were found."""
    store = make_store(folder / "tiny.h5", classes=classes)
    process = process or Flow()
    config = dataclasses.replace(
        CONFIG,
        out_channels=process.out_channels(CONFIG.channels),
        num_classes=CONFIG.num_classes if classes else 0,
    )
    network = random_network(config)
    run = RunDir(folder / "runs" / "tiny")
    step = run.begin_save(7)
    for name in ("model", "ema"):
        write_tensors(step / f"{name}.safetensors", network.state_dict())
    counts = [1.0] * 4
    meta = checkpoint_meta(
        config, process, model="SiT-Mi/2", ema=0.9999, label_dropout=0.1,
        latents=latent_facts(store), loss_by_t=dict(sums=counts, counts=counts),
    )  # fmt: skip
    run.commit_save(7, meta)
    return run.path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def draw(run: Path, out: str, **options) -> SampleSet:
    """Sample into a folder beside the run."""
    options = {"num": 8, "steps": 4, "precision": "fp32", "device": "cpu", **options}
    result = finish(sample(SampleSettings(checkpoint=run, out=run.parents[1] / out, **options)))
    return SampleSet.open(result.path)


@pytest.mark.parametrize("options", [{}, {"sde": True}])
def test_images_do_not_depend_on_the_batch(run: Path, options: dict) -> None:
    """Fault: noise drawn per batch instead of per image, in the start or in the SDE's steps."""
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
    """Fault: one seed for all images of a batch."""
    assert len(np.unique(draw(run, "all").images.reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize("wt", names.WTS)
@pytest.mark.parametrize("last_step", names.LAST_STEPS)
def test_every_wt_and_last_step(run: Path, wt: str, last_step: str) -> None:
    """Fault: a choice the options accept and the sampler does not know, or a NaN."""
    samples = draw(run, "out", num=2, sde=True, wt=wt, last_step=last_step)
    assert samples.meta["evaluations_per_image"] == 4
    assert samples.complete


@pytest.mark.parametrize("prediction", names.PREDICTIONS)
@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_every_model_samples(tmp_path: Path, interpolant: str, prediction: str) -> None:
    """Fault: a NaN at an end of the interval for a trained kind of model."""
    run = make_run(tmp_path, process=Flow(interpolant=interpolant, prediction=prediction))
    for i, options in enumerate([{}, {"sde": True}, {"sde": True, "solver": "heun"}]):
        assert draw(run, f"out{i}", num=2, **options).complete


@pytest.fixture
def chain_run(tmp_path: Path) -> Path:
    """A run of a DiT model: twice the latent's channels, for the variance."""
    return make_run(tmp_path, process=Diffusion())


def test_chain_samplers(chain_run: Path) -> None:
    """Fault: a sampler of the chain that cannot be typed, or costs or notes something else."""
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
        with pytest.raises(UsageError, match="means nothing to --ddpm"):
            draw(chain_run, "f", **options)


@pytest.mark.parametrize("options", [{}, {"ddim": True, "eta": 1.0}])
def test_chain_images_do_not_depend_on_the_batch(chain_run: Path, options: dict) -> None:
    """Fault: the chain's noise drawn per batch instead of per image."""
    whole = draw(chain_run, "whole", latents=True, **options)
    parts = draw(chain_run, "parts", latents=True, batch_size=3, **options)
    difference = whole.rows.array("latents") - parts.rows.array("latents")
    assert np.abs(difference).max() < 1e-4 * np.abs(whole.rows.array("latents")).max()


def test_evaluations_are_counted(run: Path) -> None:
    """Fault: evaluations reported from a formula that the solver does not follow."""
    assert draw(run, "a", solver="euler").meta["evaluations_per_image"] == 4
    assert draw(run, "b", solver="heun", cfg_scale=2.0).meta["evaluations_per_image"] == 16
    assert draw(run, "c", solver="rk4", batch_size=3).meta["evaluations_per_image"] == 16
    assert draw(run, "d", sde=True, solver="heun").meta["evaluations_per_image"] == 7
    assert draw(run, "e", solver="dopri5", steps=None).meta["evaluations_per_image"] > 7
    for name, options in [("a", {"solver": "euler"}), ("d", {"sde": True, "solver": "heun"})]:
        planned = plan(SampleSettings(checkpoint=run, num=8, steps=4, device="cpu", **options))
        known = SampleSet.open(run.parents[1] / name).meta["evaluations_per_image"]
        assert planned.data["evaluations"] == known


def test_classes_and_labels(run: Path) -> None:
    """Fault: names or numbers read as other classes, or labels that are not balanced."""
    assert draw(run, "a", num=5).labels.tolist() == [0, 1, 2, 0, 1]
    assert draw(run, "b", num=4, classes="blue, 0").labels.tolist() == [2, 0, 2, 0]
    random = draw(run, "c", num=40, labels="random", steps=1).labels
    assert set(random) == {0, 1, 2}
    assert random.tolist() != sorted(random.tolist())
    wrong = [("7", "no class 7"), ("bleu", "'bleu'"), (" , ", "names no class"), ("", "no class")]
    for text, message in wrong:
        with pytest.raises(UsageError, match=message):
            draw(run, "d", classes=text)


def use_patch_pca(run: Path) -> None:
    """Give the run a network on the 4 x 4 x 4 latents of patch-pca."""
    fitted = fit_patch_pca(pictures(24)[0], patch=2, channels=4)
    step = open_checkpoint(run).path
    arrays = {name: torch.from_numpy(array) for name, array in fitted.arrays.items()}
    write_tensors(step / "autoencoder.safetensors", arrays)
    config = dataclasses.replace(CONFIG, input_size=4, channels=4, out_channels=4)
    for name in ("model", "ema"):
        write_tensors(step / f"{name}.safetensors", random_network(config).state_dict())
    meta = json.loads((step / "meta.json").read_text())
    meta["transformer"] = dataclasses.asdict(config)
    meta["latents"]["autoencoder"] = fitted.spec
    (step / "meta.json").write_text(json.dumps(meta))


def test_guided_channels(run: Path) -> None:
    """Fault: --cfg-channels accepted and ignored, or other channels than the first three."""
    use_patch_pca(run)
    plain, everything, three = (
        draw(
            run, name, steps=1, solver="euler", latents=True, cfg_scale=scale, cfg_channels=channels
        ).rows.array("latents")
        for name, scale, channels in [("a", 1.0, None), ("b", 4.0, "all"), ("c", 4.0, "3")]
    )
    assert np.array_equal(three[:, :3], everything[:, :3])
    assert np.allclose(three[:, 3], plain[:, 3], atol=1e-5)
    assert np.abs(everything - plain).max(axis=(0, 2, 3)).min() > 0.01


def test_outputs(run: Path) -> None:
    """Fault: a file that is promised and not written, or written wrongly."""
    from PIL import Image

    samples = draw(run, "set", png=True, npz=True, show_path=True)
    folder = samples.directory
    assert np.array_equal(np.load(folder / "samples.npz")["arr_0"], samples.images)
    assert np.array_equal(np.array(Image.open(folder / "png" / "000003.png")), samples.images[3])
    assert {"grid.png", "path.png", "meta.json"} <= {p.name for p in folder.iterdir()}
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["evaluations_per_image"] == 8
    assert meta["class_names"] == ["red", "green", "blue"]
    single = draw(run, "alone.h5", show_path=True)
    assert single.path.name == "alone.h5"
    assert np.array_equal(single.images, samples.images)
    assert (folder.parent / "alone.grid.png").exists()
    assert (folder.parent / "alone.path.png").exists()  # not shared with the set beside it


def test_grid_of_single_images_is_square(run: Path) -> None:
    """Fault: a picture one image wide and as long as there are classes."""
    from PIL import Image

    draw(run, "three", num=3)
    draw(run, "six", num=6)
    widths = [Image.open(run.parents[1] / name / "grid.png").width for name in ("three", "six")]
    assert widths[0] < widths[1]  # without and with the margin of class names


def test_unconditional(tmp_path: Path) -> None:
    """Fault: labels demanded from, or guidance accepted for, a model without classes."""
    run = make_run(tmp_path, classes=False)
    assert draw(run, "out").complete
    with pytest.raises(UsageError, match="unconditional"):
        draw(run, "out2", cfg_scale=2.0)
    for options in ({"classes": "0"}, {"classes": ""}, {"labels": "random"}):
        with pytest.raises(UsageError, match="unconditional"):
            draw(run, "out3", **options)


def test_interrupted_sets_go_on(run: Path) -> None:
    """Fault: an interrupted set starting again, or ending with other images."""
    whole = draw(run, "whole", batch_size=3)
    stage = sample(
        SampleSettings(
            checkpoint=run, out=run.parents[1] / "parts", num=8, steps=4, batch_size=3,
            precision="fp32", device="cpu",
        )
    )  # fmt: skip
    for event in stage:
        if getattr(event, "done", 0) >= 5:
            break
    stage.close()
    assert 3 <= SampleSet.open(run.parents[1] / "parts").done.sum() < 8
    # Another batch size on the way: the set keeps the one it was begun with.
    parts = draw(run, "parts", batch_size=8)
    assert np.array_equal(whole.images, parts.images)
    assert parts.meta["evaluations_per_image"] == 8


def test_a_set_of_format_1_goes_on(run: Path) -> None:
    """Fault: sets begun before evaluations had rows of their own refused, or their count lost."""
    whole = draw(run, "whole", batch_size=4)
    with Rows(draw(run, "old", batch_size=4).path, writable=True) as rows:
        rows.write([5], status=MISSING)
        rows.set_attrs(complete=False, format_version=1, evaluations=[32, 4])
    with h5py.File(rows.path, "r+") as file:
        del file["evaluations"]
    mended = draw(run, "old", batch_size=4)
    assert mended.complete
    assert np.array_equal(mended.images, whole.images)
    assert (mended.evaluations, mended.meta["evaluations_per_image"]) == ((32, 4), 8)


def test_progress_is_kept_in_place(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: an attribute of samples.h5 made anew while drawing: HDF5 moves things for it, and a
    kill in the middle would leave a file that cannot be opened."""
    stage = sample(
        SampleSettings(
            checkpoint=run, out=run.parents[1] / "set", num=8, steps=4, batch_size=1,
            precision="fp32", device="cpu",
        )
    )  # fmt: skip
    while getattr(next(stage), "done", 0) < 1:
        pass
    monkeypatch.setattr(h5py.AttributeManager, "create", None)
    finish(stage)
    samples = SampleSet.open(run.parents[1] / "set")
    assert samples.complete
    assert samples.evaluations == (8 * 8, 8)


def test_a_kill_before_the_end_is_mended(run: Path) -> None:
    """Fault: a division by zero, or no meta.json, after a kill between the last image and the
    end."""
    samples = draw(run, "set")
    samples.rows.set_attrs(complete=False)
    (samples.directory / "meta.json").unlink()
    again = draw(run, "set")
    assert again.complete
    assert json.loads((again.directory / "meta.json").read_text())["evaluations_per_image"] == 8


def test_another_setting_is_refused(run: Path) -> None:
    """Fault: a set that mixes two samplers."""
    draw(run, "set")
    with pytest.raises(UsageError, match="drawn with steps 4, not 5"):
        draw(run, "set", steps=5)
    with pytest.raises(UsageError, match="fp32, not bf16"):
        draw(run, "set", precision="bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler-maruyama"}, "--solver euler-maruyama is not for --ode"),
        ({"solver": "rk4", "sde": True}, "not for --sde"),
        ({"solver": "dopri5", "steps": 3}, "--steps means nothing to --ode --solver dopri5"),
        ({"sde": True, "last_step_size": 0.0}, "leaves no last step"),
        ({"sde": True, "ode": True}, "--ode and --sde are two samplers"),
        ({"ddpm": True}, "--ddpm walks the chain of a DiT model"),
        ({"ddim": True}, "--ddim walks the chain of a DiT model"),
        # An option that the sampler would not look at is refused, not swallowed.
        ({"wt": "kl"}, "--wt means nothing to --ode"),
        ({"wt_scale": 2.0}, "--wt-scale means nothing to --ode"),
        ({"last_step": "euler"}, "--last-step means nothing"),
        ({"eta": 0.5}, "--eta means nothing to --ode"),
        ({"eta": 0.5, "sde": True}, "--eta means nothing to --sde"),
        ({"rtol": 0.5}, "--rtol means nothing to --ode"),
        ({"atol": 0.5, "sde": True}, "--atol means nothing to --sde"),
        ({"sde": True, "last_step": "none", "last_step_size": 0.1}, "--last-step-size means"),
        ({"cfg_channels": "3"}, "nothing without guidance"),
    ],
)
def test_bad_options(run: Path, options: dict, message: str) -> None:
    """Fault: options that contradict each other silently overwritten."""
    with pytest.raises(UsageError, match=message):
        draw(run, "out", **options)
    assert not (run.parents[1] / "out").exists()


def test_a_run_is_no_place_for_samples(run: Path) -> None:
    """Fault: a sample set within a run, after which the folder is taken for neither."""
    with pytest.raises(UsageError, match="is a run"):
        draw(run, "runs/tiny")
    (run.parents[1] / "file").write_text("")
    with pytest.raises(SitError, match="cannot make the folder"):
        draw(run, "file")


def test_damaged_or_missing_checkpoints(run: Path, tmp_path: Path) -> None:
    """Fault: a traceback for a truncated file."""
    with pytest.raises(SitError, match="there is no run"):
        draw(tmp_path / "nothing" / "x", "out")
    weights = open_checkpoint(run).path / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SitError, match="cannot read"):
        draw(run, "out")
    assert draw(run, "live", weights="model").complete


def test_newer_formats_are_refused(run: Path) -> None:
    """Fault: an artefact of a later version read as if nothing had changed, or a traceback."""
    samples, store = draw(run, "set"), run.parents[1] / "tiny.h5"
    for path in (samples.path, store):
        with Rows(path, writable=True) as file:
            file.set_attrs(format_version=9)
    meta = open_checkpoint(run).path / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format_version": 9}))
    for read in (
        lambda: SampleSet.open(samples.path),
        lambda: LatentStore.open(store),
        lambda: open_checkpoint(run),
    ):
        with pytest.raises(SitError, match=r"has format 9, this version of sit reads up to \d"):
            read()


def kill_and_compare(run: Path, kills: int) -> None:
    """Kill `sit sample` at random moments; the set must equal an unbroken one."""
    random = np.random.default_rng(0)
    whole = draw(run, "whole", num=64, batch_size=4, steps=25)
    words = ["--num=64", "--batch-size=4", "--steps=25", "--precision=fp32", "--device=cpu"]
    out = run.parents[1] / "killed"
    words = [sys.executable, "-m", "sitcli", "sample", str(run), f"--out={out}", *words]
    for _ in range(kills):
        process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not (out / "samples.h5").exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.6))
        process.kill()
        process.wait()
    subprocess.run(words, env=ENVIRONMENT, check=True, capture_output=True)
    assert np.array_equal(SampleSet.open(out).images, whole.images)


def test_kill_once(run: Path) -> None:
    """Fault: a sample set that a kill -9 leaves unreadable or with wrong images."""
    kill_and_compare(run, kills=1)


@pytest.mark.slow
def test_kill_five_times(run: Path) -> None:
    """Fault: as above, at five random moments."""
    kill_and_compare(run, kills=5)


@pytest.mark.parametrize("meta", ["", "[]", "{}", '{"format": "sit-checkpoint"}'])
def test_a_damaged_checkpoint_is_one_line(run: Path, meta: str) -> None:
    """Fault: a traceback from a meta.json that is cut short or was edited."""
    (run / "step-0000007" / "meta.json").write_text(meta)
    with pytest.raises(SitError, match=r"is damaged|is not a checkpoint"):
        plan(SampleSettings(checkpoint=run))


def test_missing_weights_are_named(run: Path) -> None:
    """Fault: no way out of a checkpoint that lost a file."""
    (run / "step-0000007" / "ema.safetensors").unlink()
    with pytest.raises(SitError, match=r"cannot read .*ema.safetensors: there is no such") as info:
        finish(sample(SampleSettings(checkpoint=run, out=run.parent / "s", num=2, steps=1)))
    assert "older step" in info.value.hint


def test_next_names_a_set_that_is_not_the_newest(run: Path, tmp_path: Path, monkeypatch) -> None:
    """Fault: a `next` command that would evaluate other samples than these."""
    monkeypatch.chdir(tmp_path)
    first, second = (SampleSettings(checkpoint=run, num=n, steps=1) for n in (2, 3))
    assert finish(sample(first)).next == "sit evaluate --fid"
    assert finish(sample(second)).next == "sit evaluate --fid"
    again = finish(sample(first))
    assert again.next == f"sit evaluate {again.path} --fid"


def test_a_set_without_its_facts_is_one_line(run: Path, tmp_path: Path) -> None:
    """Fault: a traceback from a sample set that another tool rewrote."""
    result = finish(sample(SampleSettings(checkpoint=run, out=tmp_path / "s", num=2, steps=1)))
    with h5py.File(result.path / "samples.h5", "r+") as file:
        del file["evaluations"]
    with pytest.raises(SitError, match="is damaged: no 'evaluations'"):
        SampleSet.open(result.path)
