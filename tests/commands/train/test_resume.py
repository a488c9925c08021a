"""A run that goes on: what its files say, compared with each other and with what was said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from sitcli.commands.train.job import prepare
from sitcli.commands.train.resume import (
    DEFAULTS,
    check_same_model,
    read_config,
    write_config,
)
from sitcli.commands.train.run_settings import KEPT_ON_RESUME, as_plain
from sitcli.commands.train.stage import train
from sitcli.core.diffusion import Diffusion
from sitcli.errors import SitError, UsageError
from sitcli.machine.world import World
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.settings.train import TrainSettings
from tests.tiny import ENVIRONMENT, finish, make_store, train_settings, write_meta

ALONE = World(0, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a store and a run of one step, all with settings other than the defaults."""
    folder = tmp_path_factory.mktemp("trained")
    store = make_store(folder / "tiny.h5").path
    options = dict(steps=1, interpolant="gvp", seed=3, label_dropout=0.25, mlp="swiglu")
    finish(train(train_settings(store, folder / "run", **options)))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def edit(run: Path, **changes) -> None:
    path = run / "config.yaml"
    document = yaml.safe_load(path.read_text())
    document["train"] |= changes
    path.write_text(yaml.safe_dump(document))


def edit_meta(run: Path, change) -> None:
    file = open_checkpoint(run).path / "meta.json"
    meta = json.loads(file.read_text())
    change(meta)
    write_meta(file, meta)


def older(run: Path) -> None:
    """Make the checkpoint one of 0.7, which kept the process and the network alone."""
    edit_meta(run, lambda meta: meta.pop("settings"))


def going_on(run: Path, said=None, **options):
    return prepare(TrainSettings(out=run, device="cpu", **options), ALONE, said)


def test_options_left_out_are_the_run_s(run):
    """Catches: defaults compared with the run, and a hint to leave out what was left out."""
    job = going_on(run)
    begun = yaml.safe_load((run / "config.yaml").read_text())["train"]
    now = as_plain(job.settings)
    same = begun.keys() - {"out", "latents", "save_every", "log_every", "sample_every"}
    assert {name: now[name] for name in same} == {name: begun[name] for name in same}
    assert [str(path) for path in job.store.paths] == begun["latents"]
    assert job.resume.step == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(seed=0), "with --seed 3, not 0"),
        (dict(interpolant="linear"), "with --interpolant gvp, not linear"),
        (dict(mlp="gelu"), "with --mlp swiglu, not gelu"),
        (dict(rope=True), "without --rope"),
        (dict(power_ema=True), "without --power-ema"),
        (dict(repa="0.5,1"), "without --repa"),
    ],
    ids=str,
)
def test_what_was_said_is_compared(run, options, message):
    """Catches: a value given at its default that is taken for one left out."""
    said = {name: f"remove --{name}" for name in options}
    with pytest.raises(UsageError, match=message) as failure:
        going_on(run, said, **options)
    assert failure.value.hint.endswith(*said.values())


def test_hints_name_what_was_given(run, trained):
    """Catches: a hint to remove an option that a preset, a file or the environment gave."""
    (run.parent / "c.yaml").write_text("train: {seed: 5}")
    for arguments, environment, hint in (
        (["--preset", "lightning"], {}, "remove --preset lightning"),
        (["--config", run.parent / "c.yaml"], {}, "remove seed from the --config file"),
        ([], {"SIT_TRAIN_SEED": "5"}, "unset SIT_TRAIN_SEED"),
        (["--qk-norm"], {}, "remove --qk-norm"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sitcli", "train", "--out", run, "--dry-run", *arguments],
            env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].endswith(hint), done.stderr


DECISIVE = dict(
    interpolant="linear", prediction="noise", loss_weight="velocity", direction_loss=0.5,
    mlp="gelu", norm="rms", rope=True, qk_norm=True, block="adaln", depth=3, width=64, heads=4,
    patch=2, model="SiT-Ti/4", lr=0.25, label_dropout=0.5, seed=4, batch_size=4, ema=0.5, clip=1.0,
    precision="bf16", internal_guidance=0.5,
)  # fmt: skip


@pytest.mark.parametrize("name", DECISIVE)
def test_an_edited_config_is_refused(run, name):
    """Catches: a run that goes on with another objective, network or optimizer than it began."""
    edit(run, **{name: DECISIVE[name]})
    with pytest.raises(UsageError) as failure:
        going_on(run)
    assert f"config.yaml says {name} " in failure.value.message
    assert "step-0000001 was trained with" in failure.value.message
    assert f"write {name}: " in failure.value.hint


MODEL = ("interpolant", "prediction", "loss_weight", "direction_loss", "mlp", "norm", "rope")
MODEL += ("qk_norm", "block", "depth", "width", "heads", "patch", "internal_guidance")


@pytest.mark.parametrize("name", MODEL)
def test_an_edited_config_of_an_older_run_is_refused(run, name):
    """Catches: the same, where the checkpoint has the process and the network alone."""
    older(run)
    edit(run, **{name: DECISIVE[name]})
    with pytest.raises(UsageError) as failure:
        going_on(run)
    assert f"{name} " in failure.value.message
    assert "step-0000001 was trained with" in failure.value.message


def test_every_field_of_process_and_network_is_compared(run):
    """Catches: a field that a later version adds and nobody compares."""
    job = going_on(run)
    changed = dict(
        prediction="data", loss_weight="likelihood", direction=0.125, interpolant="vp",
        input_size=16, patch=1, channels=2, out_channels=9, width=16, depth=4, heads=1,
        num_classes=9, block="in-context", input_width=8, mlp="gelu", norm="rms", qk_norm=True,
        rope=True, aux_block=1, align_block=1, align_width=5, qk_kind="layer", mlp_eps=1e-5,
        own_embedders=True,
    )  # fmt: skip
    for described in (job.process, job.config):
        for field in fields(described):
            other = replace(job.resume)
            # Written as it would be, without the checks of sizes that fit together.
            twin = object.__new__(type(described))
            for each in fields(described):
                object.__setattr__(twin, each.name, getattr(described, each.name))
            object.__setattr__(twin, field.name, changed[field.name])
            pair = dict(process=job.process, config=job.config)
            pair["process" if described is job.process else "config"] = twin
            with pytest.raises(UsageError, match="was trained with"):
                check_same_model(job.run, other, **pair)


@pytest.mark.parametrize("changes", [dict(betas="cosine"), dict(variance="fixed-small")], ids=str)
def test_the_chain_is_compared(trained, tmp_path, changes):
    """Catches: DiT's betas and variance, which SiT's process does not have, left out."""
    store = trained / "tiny.h5"
    finish(train(train_settings(store, tmp_path / "run", model="DiT-Mi/4", steps=1)))
    older(tmp_path / "run")
    edit(tmp_path / "run", **changes)
    with pytest.raises(UsageError, match="was trained with"):
        going_on(tmp_path / "run")
    edit(tmp_path / "run", betas="linear", variance="learned-range")
    assert isinstance(going_on(tmp_path / "run").process, Diffusion)
    # A model of the other family.
    edit(tmp_path / "run", model="SiT-Mi/4", betas=None, variance=None, prediction="velocity")
    with pytest.raises(UsageError, match=r"config.yaml means|config.yaml says"):
        going_on(tmp_path / "run")


def test_a_run_without_config_goes_on(run, trained):
    """Catches: a run that begins to learn something else once its config.yaml is lost."""
    before = going_on(run)
    (run / "config.yaml").unlink()
    job = going_on(run)
    assert (job.process, job.config) == (before.process, before.config)
    # What a checkpoint's record leaves out is what does not decide what is learned.
    same = as_plain(before.settings).keys() - {"latents", *KEPT_ON_RESUME}
    now, begun = as_plain(job.settings), as_plain(before.settings)
    assert {n: now[n] for n in same} == {n: begun[n] for n in same}
    with pytest.raises(UsageError, match="--interpolant gvp, not linear"):
        going_on(run, {"interpolant": "remove --interpolant"}, interpolant="linear")


def test_an_older_run_without_config_is_refused_with_a_command(run):
    """Catches: defaults taken for settings that nothing keeps, or a hint that does not work."""
    older(run)
    (run / "config.yaml").unlink()
    with pytest.raises(SitError, match=r"config.yaml is missing.*does not keep") as failure:
        going_on(run)
    command = failure.value.hint.split("defaults: ")[1]
    subprocess.run(command.replace("0.0001", "0.001"), shell=True, check=True)
    job = going_on(run)
    assert (job.settings.lr, job.settings.seed, job.settings.batch_size) == (1e-3, 3, 8)
    assert (job.process, job.config) == (job.resume.process, job.resume.config)


def test_runs_without_the_fields_of_later_versions_go_on(run):
    """Catches: a run of 0.1 to 0.7 refused for a field that its version did not have."""
    older(run)
    edit(run, mlp="gelu")
    edit_meta(run, lambda meta: meta["transformer"].pop("mlp"))
    path = run / "config.yaml"
    document = yaml.safe_load(path.read_text())
    for name in ("mlp", "norm", "rope", "qk_norm", "direction_loss", "t_dist", "tread", "compile"):
        del document["train"][name]
    path.write_text(yaml.safe_dump(document))
    assert going_on(run).config.mlp == "gelu"


def test_the_run_s_name_is_that_of_its_settings(trained, tmp_path, monkeypatch):
    """Catches: a run found by its name that takes over an edited learning rate."""
    monkeypatch.chdir(tmp_path)
    settings = replace(train_settings(trained / "tiny.h5", None, steps=1))
    finish(train(settings))
    (run,) = (tmp_path / "runs").iterdir()
    older(run)
    assert prepare(settings, ALONE).resume.step == 1
    edit(run, clip=2.0)
    with pytest.raises(
        UsageError, match=r"config.yaml says clip 2.0, but the run's name"
    ) as caught:
        prepare(settings, ALONE)
    assert "write clip: 0.0 into" in caught.value.hint


@pytest.mark.parametrize("latents", ["a.h5", ["a.h5"], None], ids=str)
def test_the_config_of_an_older_run_is_read(run, latents):
    """Catches: a run whose config.yaml names one store as text that cannot go on."""
    edit(run, latents=latents)
    assert going_on(run).resume.step == 1


def test_a_config_written_by_hand_is_read_as_typed(tmp_path):
    """Catches: YAML 1.1's readings in a run's own file: 1e-4 as text, off as False."""
    (tmp_path / "config.yaml").write_text(
        "train:\n  lr: 1e-4\n  compile: off\n  flip: no\n  steps: 010\n"
    )
    assert read_config(tmp_path / "config.yaml") == dict(
        lr=1e-4, compile="off", flip=False, steps=10
    )
    (tmp_path / "config.yaml").write_text("train: {steps: on}")
    with pytest.raises(SitError, match="steps is 'on', not a number"):
        read_config(tmp_path / "config.yaml")


def test_config_yaml_comes_back(tmp_path):
    """Catches: a setting that is written in one form and read in another."""
    settings = TrainSettings(
        latents=[Path("a.h5")], lr=3e-5, compile="off", zero="1", t_shift="0.5", flip=False
    )
    write_config(tmp_path / "config.yaml", settings)
    assert read_config(tmp_path / "config.yaml") == as_plain(settings)
    assert as_plain(TrainSettings()) == DEFAULTS


def test_a_run_keeps_its_checkpoints_as_it_was_told_to(trained, tmp_path):
    """Catches: checkpoints that were to stay for good deleted, and others saved less often, by a
    resume that leaves the options out."""
    out = tmp_path / "run"
    store = trained / "tiny.h5"
    kept = dict(save_every=2, keep=1, keep_every=4, sample_every=0, log_every=3, strict=True)
    finish(train(train_settings(store, out, steps=4, **kept, on_nan="rollback")))
    bare = TrainSettings(out=out, steps=10, device="cpu")
    finish(train(bare, {"out": "remove --out", "steps": "remove --steps"}))
    written = read_config(out / "config.yaml")
    assert {name: written[name] for name in kept} == kept
    assert written["on_nan"] == "rollback"
    assert RunDir(out).steps() == [4, 8, 10]
    said = replace(bare, steps=11, keep_every=None)
    finish(train(said, dict.fromkeys(("out", "steps", "keep_every"), "")))
    assert read_config(out / "config.yaml")["keep_every"] is None
