"""The training step: accumulation, the norm of the gradient, losses that are not finite."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.train.job import prepare
from sitcli.commands.train.stage import train
from sitcli.errors import SitError
from sitcli.events import Progress, Warn
from sitcli.latents.layout import row_checksums
from sitcli.machine.world import World
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.storage.rows import Rows
from sitcli.storage.tensors import read_tensors
from tests.tiny import finish, losses, make_store, numbered_losses, train_settings


def test_accumulation_equals_the_big_batch(store: Path, tmp_path: Path) -> None:
    """Catches: a loss that is not divided by the micro-batches, or gradients zeroed in between."""
    finish(train(train_settings(store, tmp_path / "one", steps=3)))
    finish(train(train_settings(store, tmp_path / "four", steps=3, accumulate=4)))
    for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "four"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_averages_take_each_steps_decay(store: Path, tmp_path: Path) -> None:
    """Catches: decays that are off by one step, or averages of the weights before the update.

    Update k, counted from 0, has the decay (1 + k) / (10 + k) while warming up, and
    (1 - 1 / (k + 1))^(gamma + 1) for a power function: the first takes the weights as they are.
    """
    settings = train_settings(
        store, tmp_path / "run", steps=4, save_every=1, keep=0, lr=1e-2, power_ema=True
    )
    finish(train(settings))
    key = "blocks.0.attn.qkv.weight"

    def saved(step: int, file: str) -> torch.Tensor:
        return read_tensors(tmp_path / "run" / f"step-{step:07d}" / file)[key].double()

    weights = {step: saved(step, "model.safetensors") for step in range(1, 5)}
    for std, gamma in ((0.05, 16.97), (0.1, 6.94)):
        file = f"ema-std{std:.3f}.safetensors"
        assert torch.equal(saved(1, file), weights[1])
        for k in (1, 2, 3):
            decay = (k / (k + 1)) ** (gamma + 1)
            expected = decay * saved(k, file) + (1 - decay) * weights[k + 1]
            # The exponents are the paper's, to 0.005; a step moves a weight by 0.01.
            torch.testing.assert_close(saved(k + 1, file), expected, rtol=0, atol=2e-5)
    for k in (1, 2, 3):
        decay = (1 + k) / (10 + k)
        expected = decay * saved(k, "ema.safetensors") + (1 - decay) * weights[k + 1]
        # float32, of weights below 1.
        torch.testing.assert_close(saved(k + 1, "ema.safetensors"), expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gradient_norm_is_that_of_every_stage(
    store: Path, tmp_path: Path, precision: str
) -> None:
    """Catches: no norm under stage 0, or one of scaled, clipped or halved gradients; one process
    that trains otherwise than under the stage of many."""
    more = dict(steps=3, accumulate=2, clip=0.1, precision=precision)
    finish(train(train_settings(store, tmp_path / "none", **more)))
    finish(train(train_settings(store, tmp_path / "one", zero="1", **more)))
    (alone, many) = (losses(tmp_path / name) for name in ("none", "one"))
    assert prepare(train_settings(store, tmp_path / "new", **more), World(0, 1)).zero == 0
    assert prepare(train_settings(store, tmp_path / "new", **more), World(0, 2)).zero == 1
    assert all(norm > 0.1 for _, _, norm in alone)
    for a, b in zip(alone, many, strict=True):
        assert a == pytest.approx(b, rel=1e-5 if precision == "fp32" else 1e-2)


def test_nan_stops_and_names_the_last_good_checkpoint(store: Path, tmp_path: Path) -> None:
    """Catches: training on after a NaN, or saving it over the last good state."""
    finish(train(train_settings(store, tmp_path / "run", steps=2)))
    with Rows(store, writable=True) as file:
        poison = np.full((24, 3, 8, 8), np.nan, np.float16)
        crc = row_checksums(poison, poison)
        file.write(range(24), latents=poison, latents_flipped=poison, crc32=crc)
    with pytest.raises(SitError, match=r"not finite at step 3.*step-0000002"):
        finish(train(train_settings(store, tmp_path / "run", steps=6)))
    assert RunDir(tmp_path / "run").steps() == [2]
    # The data are at fault: another draw does not help, and a second one is not made.
    stage = train(train_settings(store, tmp_path / "run", steps=6, on_nan="rollback"))
    events = []
    with pytest.raises(SitError, match="not finite at step 3"):
        events.extend(stage)
    assert sum(isinstance(event, Warn) for event in events) == 1


@pytest.mark.parametrize(("after", "redrawn"), [(4, [2, 4]), (5, [4, 6])])
def test_nan_rolls_back_once(store: Path, tmp_path: Path, after: int, redrawn: list[int]) -> None:
    """Catches: a rollback that draws the same again, forgets it on resume, or loses good steps.

    The weights are made infinite after a step: after step 4, which is saved, no loss has shown it.
    """
    run, plain = RunDir(tmp_path / "run"), RunDir(tmp_path / "plain")
    stage = train(train_settings(store, run.path, steps=8, on_nan="rollback"))
    warnings = []
    for event in stage:
        warnings += [event.text] if isinstance(event, Warn) else []
        if isinstance(event, Progress) and event.done == after and not warnings:
            engine = stage.gi_frame.f_locals["trainer"].engine
            for parameter in engine.module.parameters():
                parameter.data.fill_(np.inf)
            stage.gi_frame.f_locals["trainer"].ema.update(0.5)
    assert len(warnings) == 1
    finish(train(train_settings(store, plain.path, steps=8)))
    a, b = (dict(numbered_losses(r.path)) for r in (run, plain))
    first, last = redrawn
    assert sorted(a) == list(range(1, 9))
    assert all(a[step] == b[step] for step in range(1, first + 1))
    assert all(a[step] != b[step] for step in range(first + 1, last + 1))
    assert np.isfinite(list(a.values())).all()
    assert open_checkpoint(run.path).meta["redrawn"] == [redrawn]
    shutil.rmtree(run.step_path(8))
    finish(train(train_settings(store, run.path, steps=8, on_nan="rollback")))
    assert dict(numbered_losses(run.path)) == a
    assert open_checkpoint(run.path).meta["redrawn"] == [redrawn]


def events_until(stage, step: int) -> list:
    """The events of a training up to the one that tells of `step`."""
    events = []
    for event in stage:
        events.append(event)
        if isinstance(event, Progress) and event.done >= step:
            return events
    return events


def test_a_store_overwritten_in_place_stops_the_run(store: Path, tmp_path: Path) -> None:
    """Catches: steps on a mixture of two stores, and the steps before it lost."""
    stage = train(train_settings(store, tmp_path / "run", steps=50, save_every=40))
    events_until(stage, 3)
    with Rows(store, writable=True) as file:
        other = np.ones((24, 3, 8, 8), np.float16)
        file.write(range(24), latents=other, latents_flipped=other)
    os.utime(store, (2e9, 2e9))  # the clock of the file system may tick too slowly
    with pytest.raises(SitError, match=r"overwritten in place.*checkpoint is .*step-") as failure:
        finish(stage)
    assert "--overwrite and mv" in failure.value.hint
    (saved,) = RunDir(tmp_path / "run").steps()
    assert 3 <= saved < 40


def test_a_store_cut_short_stops_the_run(store: Path, tmp_path: Path) -> None:
    """Catches: SIGBUS."""
    stage = train(train_settings(store, tmp_path / "run", steps=50, save_every=3))
    events_until(stage, 4)
    os.truncate(store, 4096)
    with pytest.raises(SitError, match=r"cut short while it was read.*checkpoint is"):
        finish(stage)
    assert RunDir(tmp_path / "run").steps()[-1] >= 4


def test_a_store_replaced_as_a_whole_is_trained_on_to_the_end(store: Path, tmp_path: Path) -> None:
    """Catches: a run that changes over to the new file, or says nothing."""
    finish(train(train_settings(store, tmp_path / "alone", steps=6)))
    stage = train(train_settings(store, tmp_path / "run", steps=6))
    events = events_until(stage, 2)
    make_store(tmp_path / "new.h5", number=30)
    os.replace(tmp_path / "new.h5", store)
    events += list(stage)
    warnings = [event.text for event in events if isinstance(event, Warn)]
    assert len(warnings) == 1
    assert "tiny.h5 was replaced by another file" in warnings[0]
    assert losses(tmp_path / "run") == losses(tmp_path / "alone")
    with pytest.raises(SitError, match=r"was trained on other latents than .*tiny\.h5 holds now"):
        finish(train(train_settings(store, tmp_path / "run", steps=8)))
