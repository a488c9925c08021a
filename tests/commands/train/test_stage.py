"""`sit train`, top to bottom: every kind of model learns, and a plan writes nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sitcli import names
from sitcli.commands.train.stage import plan, train
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import UsageError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from tests.tiny import (
    ENVIRONMENT,
    finish,
    losses,
    make_store,
    pictures,
    train_command,
    train_settings,
    wait_for_steps,
    write_samples,
)


def test_model_learns(store: Path, tmp_path: Path) -> None:
    """Catches: gradients that never reach the weights; the loss must fall well below its start."""
    finish(
        train(
            train_settings(
                store, tmp_path / "run", steps=60, save_every=60, sample_every=60, lr=3e-3
            )
        )
    )
    curve = [loss for _, loss, _ in losses(tmp_path / "run")]
    assert np.mean(curve[-10:]) < 0.75 * np.mean(curve[:5])
    assert (tmp_path / "run" / "samples" / "step-0000060.png").exists()
    assert (tmp_path / "run" / "loss.png").exists()
    assert list((tmp_path / "run" / "tb").glob("events*"))
    assert open_checkpoint(tmp_path / "run").loss_curve is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model="SiT-S/3"), "patch 3 does not divide"),
        (dict(model="SiT-Q/2"), "no model is called"),
        (dict(model="DiT-S/2", interpolant="gvp"), "--interpolant is an option of SiT"),
        (dict(betas="cosine"), "--betas is an option of DiT"),
        (dict(posterior="mode"), "--posterior means nothing here"),
        (dict(variance="fixed-small"), "--variance is an option of DiT"),
        (dict(batch_size=9, accumulate=2), "not divisible"),
        (dict(heads=3), "heads do not divide"),
    ],
)
def test_bad_options_touch_nothing(store: Path, tmp_path: Path, options, message) -> None:
    """Catches: a bad option found only after files were written."""
    with pytest.raises(UsageError, match=message):
        finish(train(train_settings(store, tmp_path / "run", steps=2, **options)))
    assert not (tmp_path / "run").exists()


def test_a_sample_set_is_no_place_for_a_run(store: Path, tmp_path: Path) -> None:
    """Catches: a folder that is both, and that no command reads any more."""
    write_samples(tmp_path / "set", pictures(2)[0])
    with pytest.raises(UsageError, match="is a sample set"):
        finish(train(train_settings(store, tmp_path / "set", steps=2)))


def test_dry_run_touches_nothing(store: Path, tmp_path: Path) -> None:
    """Catches: a plan that creates the run directory."""
    before = sorted(tmp_path.rglob("*"))
    result = plan(train_settings(store, tmp_path / "run", steps=10))
    assert result.data["steps"] == 10
    assert result.data["params"] > 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("zero", ["0", "1", "3"])
def test_the_planned_size_is_the_checkpoints(store: Path, tmp_path: Path, zero: str) -> None:
    """Catches: a plan that forgets what DeepSpeed writes beside our own files."""
    planned = plan(train_settings(store, tmp_path / "run", steps=1, zero=zero)).data[
        "checkpoint_bytes"
    ]
    step = finish(train(train_settings(store, tmp_path / "run", steps=1, zero=zero))).path
    size = sum(path.stat().st_size for path in step.rglob("*") if path.is_file())
    assert planned == pytest.approx(size, rel=0.1)


def test_next_names_a_run_that_is_not_the_newest(store: Path, tmp_path: Path, monkeypatch) -> None:
    """Catches: a `next` command that would sample from another run."""
    monkeypatch.chdir(tmp_path)
    first, second = (train_settings(store, Path("runs") / name, steps=1) for name in ("a", "b"))
    assert finish(train(first)).next == "sit sample"
    assert finish(train(second)).next == "sit sample"
    assert finish(train(first)).next == "sit sample runs/a"


def test_unconditional(tmp_path: Path) -> None:
    """Catches: a label table of the wrong size, or labels passed to a model that has none."""
    store = make_store(tmp_path / "flat.h5", classes=False).path
    finish(train(train_settings(store, tmp_path / "run", steps=2)))
    assert open_checkpoint(tmp_path / "run").config.num_classes == 0
    with pytest.raises(UsageError, match="--label-dropout means nothing here"):
        finish(train(train_settings(store, tmp_path / "other", steps=2, label_dropout=0.5)))


@pytest.mark.parametrize("prediction", ["score", "noise", "data"])
def test_every_prediction_trains(store: Path, tmp_path: Path, prediction: str) -> None:
    """Catches: a prediction accepted by the options but without a training path."""
    s = train_settings(
        store, tmp_path / "run", steps=3, prediction=prediction, interpolant="vp",
        loss_weight="velocity",
    )  # fmt: skip
    finish(train(s))
    assert open_checkpoint(tmp_path / "run").process == Flow(
        interpolant="vp", prediction=prediction, loss_weight="velocity"
    )


@pytest.mark.parametrize("variance", names.VARIANCES)
@pytest.mark.parametrize("betas", names.BETAS)
def test_the_chain_trains(store: Path, tmp_path: Path, betas: str, variance: str) -> None:
    """Catches: a discrete model that does not learn, or comes back as another process."""
    s = train_settings(
        store, tmp_path / "run", model="DiT-Mi/4", steps=60, save_every=60, lr=3e-3, betas=betas,
        variance=variance,
    )  # fmt: skip
    finish(train(s))
    curve = [loss for _, loss, _ in losses(tmp_path / "run")]
    assert np.mean(curve[-10:]) < 0.75 * np.mean(curve[:5])
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.process == Diffusion(betas=betas, variance=variance)
    assert checkpoint.config.out_channels == (6 if variance == "learned-range" else 3)
    assert checkpoint.loss_curve is not None


def test_sigterm_saves_and_exits_143(store: Path, tmp_path: Path) -> None:
    """Catches: work lost on preemption, a traceback, or an exit code a scheduler misreads.

    The signal comes twice, as to the processes of torchrun: the second must not kill the save.
    """
    words = train_command(store, tmp_path / "run", steps=100_000, save_every=50_000)
    process = subprocess.Popen(
        [sys.executable, *words], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_for_steps(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert "stopped by a signal, saved at step" in errors
    assert RunDir(tmp_path / "run").steps()
