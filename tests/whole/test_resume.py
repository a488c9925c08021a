"""Training resumed: the same losses after every stop, under any stage and number of processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sitcli.commands.train.stage import train
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from tests.tiny import ENVIRONMENT, finish, losses, numbered_losses, train_command, train_settings


def test_resume_is_exact(store: Path, tmp_path: Path) -> None:
    """Catches: a resume that skips the optimizer, the average, the order or the randomness."""
    finish(train(train_settings(store, tmp_path / "whole", steps=6, save_every=3)))
    # 2 + 2 + 2 with a batch that does not divide the epoch, saved where no log line is written.
    for steps in (2, 4, 6):
        finish(train(train_settings(store, tmp_path / "parts", steps=steps, save_every=2)))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for which in ("model", "ema"):
        whole = open_checkpoint(tmp_path / "whole").weights(which)
        parts = open_checkpoint(tmp_path / "parts").weights(which)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    a, b = (open_checkpoint(tmp_path / name).meta["loss_by_t"] for name in ("whole", "parts"))
    assert a == b


def test_log_window_survives_resume(store: Path, tmp_path: Path) -> None:
    """Catches: the running mean of the loss forgotten when a save falls between two log lines."""
    finish(train(train_settings(store, tmp_path / "whole", steps=6, log_every=3)))
    for steps in (4, 6):
        finish(
            train(train_settings(store, tmp_path / "parts", steps=steps, save_every=4, log_every=3))
        )
    whole = {step: loss for step, loss, _ in losses(tmp_path / "whole")}
    parts = {step: loss for step, loss, _ in losses(tmp_path / "parts")}
    # The shorter run ended at step 4 with a line of its own and a fresh window.
    assert parts[3] == whole[3]


def test_every_zero_stage_goes_on_from_every_other(store: Path, tmp_path: Path) -> None:
    """Catches: moments lost or misplaced when the stage changes: the next losses would differ."""
    finish(train(train_settings(store, tmp_path / "whole", steps=10)))
    for steps, zero in ((2, "0"), (4, "3"), (6, "1"), (8, "2"), (10, "0")):
        finish(train(train_settings(store, tmp_path / "parts", steps=steps, zero=zero)))
    whole, parts = (dict(numbered_losses(tmp_path / name)) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for step, loss in whole.items():
        assert parts[step] == pytest.approx(loss, rel=1e-6)


def test_the_chain_resumes_exactly(store: Path, tmp_path: Path) -> None:
    """Catches: steps of the chain drawn from anything but (seed, step)."""
    finish(train(train_settings(store, tmp_path / "whole", model="DiT-Mi/4", steps=4)))
    for steps in (2, 4):
        finish(train(train_settings(store, tmp_path / "parts", model="DiT-Mi/4", steps=steps)))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def zero_losses(store: Path, out: Path, zero: int, procs: int) -> list[tuple[int, float]]:
    words = train_command(store, out, steps=4, zero=zero, log_every=1, procs=procs)
    done = subprocess.run(
        [sys.executable, *words], env=ENVIRONMENT, check=True, capture_output=True
    )
    assert done.stdout.decode().splitlines() == [str(RunDir(out).newest())]
    return numbered_losses(out)


@pytest.mark.parametrize("zero", [pytest.param(0, marks=pytest.mark.slow), 1, 2, 3])
def test_two_processes_equal_one(store: Path, tmp_path: Path, zero: int) -> None:
    """Catches: ranks that see the same data, losses not reduced, an average of one rank's shard,
    a result printed by every rank."""
    finish(train(train_settings(store, tmp_path / "one", steps=4)))
    two = zero_losses(store, tmp_path / "two", zero, 2)
    assert [step for step, _ in two] == [1, 2, 3, 4]
    one = [(e["step"], e["loss"]) for e in RunDir(tmp_path / "one").read_metrics()]
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    for which in ("model", "ema"):
        single = open_checkpoint(tmp_path / "one").weights(which)
        double = open_checkpoint(tmp_path / "two").weights(which)
        assert single.keys() == double.keys()
        for key in single:
            torch.testing.assert_close(double[key], single[key], rtol=1e-4, atol=2e-5)
    meta = json.loads((RunDir(tmp_path / "two").newest() / "meta.json").read_text())
    assert meta["world_size"] == 2
    assert len(RunDir(tmp_path / "two").read_metrics()[-1]["rank_seconds"]) == 2


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([(1, 1, 1), (2, 2, 3), (3, 1, 0)], id="there-and-back"),
        pytest.param(
            [(2, 1, 1), (4, 2, 2), (6, 4, 3), (8, 2, 0), (10, 1, 3)],
            id="up-and-down",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [(2, 4, 1), (4, 4, 3), (6, 3, 2), (8, 3, 0), (10, 2, 1)],
            id="four-down",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_resume_across_world_sizes_and_stages(store: Path, tmp_path: Path, parts) -> None:
    """Catches: another order or noise under another number of processes, or moments misplaced."""
    options = dict(batch_size=12)
    finish(train(train_settings(store, tmp_path / "whole", steps=parts[-1][0], **options)))
    for steps, procs, zero in parts:
        more = dict(options, steps=steps, zero=str(zero))
        if procs == 1:
            finish(train(train_settings(store, tmp_path / "parts", **more)))
            continue
        words = train_command(store, tmp_path / "parts", procs=procs, **more)
        subprocess.run([sys.executable, *words], env=ENVIRONMENT, check=True, capture_output=True)
    whole, pieces = (dict(numbered_losses(tmp_path / name)) for name in ("whole", "parts"))
    assert whole.keys() == pieces.keys()
    for step, loss in whole.items():
        assert pieces[step] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
def test_two_processes_resume_exactly(store: Path, tmp_path: Path, zero: int) -> None:
    """Catches: a shard that comes back to the wrong rank, or rounded."""
    for name, parts in (("whole", (6,)), ("parts", (2, 6))):
        for steps in parts:
            words = train_command(store, tmp_path / name, steps=steps, procs=2, zero=zero)
            subprocess.run(
                [sys.executable, *words], env=ENVIRONMENT, check=True, capture_output=True
            )
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_torchrun_and_one_voice(store: Path, tmp_path: Path) -> None:
    """Catches: an error or a result said by every process; one failing for all of them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [sys.executable, *launcher, *train_command(store, tmp_path / "run", steps=2)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(RunDir(tmp_path / "run").newest())]
    assert done.stderr.count("run: ") == 1
    failed = subprocess.run(
        [*words, "--interpolant=gvp"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert failed.returncode
    assert failed.stderr.count("error: ") == 1
    assert "--interpolant linear, not gvp" in failed.stderr
