"""What is beyond the papers, through the stages: it trains, resumes and samples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.export import export
from sitcli.commands.import_weights import import_weights
from sitcli.commands.sample.stage import plan
from sitcli.commands.train.stage import train
from sitcli.errors import UsageError
from sitcli.machine.seeds import Philox
from sitcli.model.transformer import Transformer
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir, snapshot_name
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.settings.weights import ExportSettings, ImportSettings
from sitcli.storage.tensors import read_tensors
from tests.tiny import ENVIRONMENT, TRAINING, finish, train_settings
from tests.whole.beyond import EVERYTHING, drawn, train_with_everything

SIT = [sys.executable, "-m", "sitcli"]


def same_files(a: Path, b: Path) -> None:
    names = [file.name for file in a.glob("*.safetensors")]
    assert snapshot_name(0.05) in names
    for name in names:
        first, second = read_tensors(a / name), read_tensors(b / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train_with_everything(tmp_path_factory.mktemp("all"))


def test_everything_resumes_to_the_last_bit(trained: Path, tmp_path: Path) -> None:
    """Catches: tracks that begin anew, a step's tokens drawn from a generator that is not the
    step's, terms of the log that are lost."""
    latents = Path(open_checkpoint(trained).latents["store"])
    for steps in (3, 6):
        run = train_settings(
            latents, tmp_path / "run", steps=steps, save_every=3, keep=2, **EVERYTHING
        )
        finish(train(run))
    same_files(trained / "step-0000006", tmp_path / "run" / "step-0000006")
    last = RunDir(trained).read_metrics()[-1]
    for name in ("loss_sync", "loss_internal"):
        assert np.isfinite(last[name])


@pytest.mark.parametrize("zero", ["1", "3"])
def test_two_processes_train_the_same(trained: Path, tmp_path: Path, zero: str) -> None:
    """Catches: routes drawn by rank, heads whose weights ZeRO 3 gathers too late, tracks of halves
    that are put together wrongly."""
    latents = open_checkpoint(trained).latents["store"]
    options = {**TRAINING, **EVERYTHING, "procs": 2, "steps": 6, "zero": zero, "save_every": 6}
    flags = [
        f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}") for k, v in options.items()
    ]
    command = [*SIT, "train", "--latents", latents, "--out", str(tmp_path / "run"), *flags]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", snapshot_name(0.10)):
        one = read_tensors(trained / "step-0000006" / name)
        two = read_tensors(tmp_path / "run" / "step-0000006" / name)
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, atol=2e-5, rtol=1e-3)


def test_every_guidance_and_solver_of_one_run(trained: Path, tmp_path: Path) -> None:
    """Catches: an option that is taken and does nothing; evaluations that are planned and not
    spent."""
    seen = {}
    guide = trained / "step-0000005"
    for name, options in {
        "plain": {},
        "ab2": dict(solver="ab2"),
        "dpm": dict(solver="dpm++2m"),
        "shift": dict(t_shift="3"),
        "no-shift": dict(t_shift="1"),
        "cfg": dict(cfg_scale=3.0),
        "interval": dict(cfg_scale=3.0, cfg_interval="0.3,0.8"),
        "guide": dict(guide=guide, guide_scale=5.0),
        "internal": dict(internal_scale=3.0),
    }.items():
        samples = drawn(trained, tmp_path / name, **options)
        more = dict(num=4, steps=4, device="cpu") | options
        planned = plan(SampleSettings(checkpoint=trained, out=tmp_path / "plan", **more))
        assert planned.data["evaluations"] == samples.meta["evaluations_per_image"]
        seen[name] = samples.rows.array("latents").copy()
    for name, latents in seen.items():
        others = [other for key, other in seen.items() if key != name]
        assert not any(np.array_equal(latents, other) for other in others), name
    facts = SampleSet.open(tmp_path / "plain").meta
    assert facts["t_shift"] == "0.5"  # the training's
    assert SampleSet.open(tmp_path / "interval").meta["cfg_interval"] == [0.3, 0.8]
    assert SampleSet.open(tmp_path / "guide").meta["guide"] == str(guide.resolve())


def test_internal_guidance_is_the_formula(trained: Path, tmp_path: Path) -> None:
    """Catches: a scale at the wrong end: one Euler step from t = 1 is x - v."""
    one = dict(solver="euler", steps=1, num=2)
    drawn(trained, tmp_path / "a", **one)
    samples = drawn(trained, tmp_path / "b", internal_scale=2.5, **one)
    network: Transformer = open_checkpoint(trained).network("ema", torch.device("cpu"))
    plain = drawn(trained, tmp_path / "noise", **one, internal_scale=1.0)
    y = torch.from_numpy(np.array(samples.labels))
    x1 = torch.from_numpy(np.array(plain.rows.array("latents")))
    # Whatever the noise is, the two sets differ by the heads' difference there.
    noise = Philox(0).samples(np.arange(2)).normal(*x1.shape[1:])
    output, aux = network.two_headed(noise, torch.ones(2), y)
    expected = noise - (aux + 2.5 * (output - aux))
    found = torch.from_numpy(np.array(samples.rows.array("latents")))
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(cfg_interval="0,0.5"), "no effect without --cfg-scale"),
        (dict(cfg_scale=2.0, cfg_interval="0.5,0.2"), "0 <= LO < HI <= 1"),
        (dict(cfg_scale=2.0, cfg_interval="a"), "0 <= LO < HI <= 1"),
        (dict(guide_scale=2.0), "no effect without --guide"),
        (dict(t_shift="fast"), "is not a time shift"),
        (dict(t_shift="2", solver="dopri5", steps=None), "has no effect with --ode"),
        (dict(internal_scale=2.0), "has no second head"),
    ],
    ids=str,
)
def test_sampling_refusals(store: Path, tmp_path: Path, options: dict, message: str) -> None:
    """Catches: an option that is silently left out."""
    finish(train(train_settings(store, tmp_path / "run", steps=1)))
    with pytest.raises(UsageError, match=message):
        drawn(tmp_path / "run", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_guides_that_do_not_fit(store: Path, trained: Path, tmp_path: Path) -> None:
    """Catches: velocities of other latents, or of another path, taken for a guide's."""
    finish(train(train_settings(store, tmp_path / "gvp", steps=1, interpolant="gvp")))
    with pytest.raises(UsageError, match="other path"):
        drawn(trained, tmp_path / "out", guide=tmp_path / "gvp")
    with pytest.raises(UsageError, match="the checkpoint itself"):
        drawn(trained, tmp_path / "out", guide=trained)


def test_export_of_what_is_beyond(trained: Path, store: Path, tmp_path: Path) -> None:
    """Catches: weights written in a layout whose code computes something else with them."""
    for layout in ("official-sit", "diffusers"):
        with pytest.raises(UsageError, match="SwiGLU, RMSNorm, QK-norm, RoPE"):
            finish(export(ExportSettings(checkpoint=trained, out=tmp_path / "o", format=layout)))
    ours = tmp_path / "all.safetensors"
    finish(export(ExportSettings(checkpoint=trained, out=ours, format="safetensors")))
    finish(import_weights(ImportSettings(weights=ours, out_dir=tmp_path / "again")))
    again = open_checkpoint(tmp_path / "again")
    assert again.config == open_checkpoint(trained).config
    a = drawn(trained, tmp_path / "a", internal_scale=2.0)
    b = drawn(tmp_path / "again", tmp_path / "b", internal_scale=2.0)
    np.testing.assert_array_equal(a.rows.array("latents"), b.rows.array("latents"))
    # A second head and a projector stay behind; the network is the official one without them.
    finish(train(train_settings(store, tmp_path / "head", steps=1, depth=2, internal_guidance=0.5)))
    official = tmp_path / "sit.pt"
    finish(
        export(ExportSettings(checkpoint=tmp_path / "head", out=official, format="official-sit"))
    )
    keys = torch.load(official, weights_only=True)
    assert not [key for key in keys if key.startswith("aux_")]
    folder = tmp_path / "folder"
    finish(export(ExportSettings(checkpoint=tmp_path / "head", out=folder, format="diffusers")))
    finish(import_weights(ImportSettings(weights=folder, out_dir=tmp_path / "plain")))
    plain, head = open_checkpoint(tmp_path / "plain"), open_checkpoint(tmp_path / "head")
    assert head.config.aux_block
    assert plain.config == head.config.backbone
    assert plain.meta["seed"] == head.meta["seed"]
