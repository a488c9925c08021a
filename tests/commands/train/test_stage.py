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
from sitcli.commands.train import stage
from sitcli.commands.train.stage import train
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from tests.tiny import (
    ENVIRONMENT,
    finish,
    losses,
    make_store,
    train_command,
    train_settings,
    wait_for_steps,
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
    # A step whose batch holds k = 0 may cost 40: the bound there is a density of narrow width.
    assert np.median(curve[-10:]) < 0.75 * np.median(curve[:5])
    assert (tmp_path / "run" / "samples" / "step-0000060.png").exists()
    assert (tmp_path / "run" / "loss.png").exists()
    assert list((tmp_path / "run" / "tb").glob("events*"))
    assert open_checkpoint(tmp_path / "run").loss_curve is not None


def test_unconditional(tmp_path: Path) -> None:
    """Catches: a label table of the wrong size, or labels passed to a model that has none."""
    store = make_store(tmp_path / "flat.h5", classes=False).path
    finish(train(train_settings(store, tmp_path / "run", steps=2)))
    assert open_checkpoint(tmp_path / "run").config.num_classes == 0
    with pytest.raises(UsageError, match="--label-dropout has no effect"):
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
    # A step whose batch holds k = 0 may cost 40: the bound there is a density of narrow width.
    assert np.median(curve[-10:]) < 0.75 * np.median(curve[:5])
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
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert "stopped by a signal, saved at step" in errors
    assert RunDir(tmp_path / "run").steps()


def test_ranks_that_opened_two_stores_are_refused(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: half of a batch from the old store and half from the one that replaced it."""
    other = ("another fingerprint", "another checksum")
    monkeypatch.setattr(stage, "gathered", lambda world, value: [value, other])
    with pytest.raises(SitError, match="replaced by another file while the processes opened it"):
        finish(train(train_settings(store, tmp_path / "run", steps=1)))
    assert not (tmp_path / "run").exists()
