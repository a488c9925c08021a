"""Checkpoints: kept, pruned, cut off, or not saved because the disk is full."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from sitcli.commands.train.job import prepare
from sitcli.commands.train.resume import said_by_default
from sitcli.commands.train.stage import train
from sitcli.errors import SitError
from sitcli.events import Event, Progress, Stage, Warn
from sitcli.machine.world import World
from sitcli.runs.run_dir import RunDir
from tests.tiny import finish, train_settings


@pytest.mark.parametrize(("every", "kept"), [(None, [5, 6]), (2, [2, 4, 5, 6]), (3, [3, 5, 6])])
def test_keep_prunes_the_oldest(store: Path, tmp_path: Path, every, kept) -> None:
    """Catches: pruning the newest checkpoint, one that is to stay for good, or none."""
    s = train_settings(store, tmp_path / "run", steps=6, save_every=1, keep=2, keep_every=every)
    finish(train(s))
    assert RunDir(tmp_path / "run").steps() == kept


@pytest.mark.parametrize("limit", [40_000, 400_000])
def test_a_full_disk_keeps_the_last_checkpoint(store: Path, tmp_path: Path, limit: int) -> None:
    """Catches: a traceback from torch or safetensors, or a half-written checkpoint that counts.

    A limit on the size of a file stands for the disk: the smaller one stops DeepSpeed's first
    file, the larger one the optimizer's state.
    """
    finish(train(train_settings(store, tmp_path / "run", steps=2)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(SitError, match="cannot save step 4") as error:
            finish(train(train_settings(store, tmp_path / "run", steps=4)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "step-0000002" in error.value.hint
    run = RunDir(tmp_path / "run")
    assert run.steps() == [2]
    assert run.partial() == []
    finish(train(train_settings(store, tmp_path / "run", steps=4)))
    assert run.steps() == [2, 4]


def events_on_a_full_disk(stage: Stage) -> list[Event]:
    """All events of a training whose disk is full from step 3 until it warns."""
    events, before = [], resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for event in stage:
            events.append(event)
            if isinstance(event, Progress) and event.done == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
            if isinstance(event, Warn):
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return events


def test_a_full_disk_in_the_middle(store: Path, tmp_path: Path) -> None:
    """Catches: hours of training thrown away for one checkpoint, or --strict that trains on."""
    run = RunDir(tmp_path / "run")
    with pytest.raises(SitError, match="cannot save step 4"):
        events_on_a_full_disk(train(train_settings(store, run.path, steps=8, strict=True)))
    assert run.steps() == [2]
    assert run.partial() == []
    lenient = train_settings(store, run.path, steps=8, keep=0)
    said = said_by_default(lenient) | {"strict": "remove --no-strict"}  # the run's is True
    events = events_on_a_full_disk(train(lenient, said))
    (warning,) = (event.text for event in events if isinstance(event, Warn))
    assert "cannot save step 4" in warning
    assert "training goes on, the last good checkpoint is" in warning
    assert run.steps() == [2, 6, 8]
    assert run.partial() == []


def test_half_a_checkpoint_does_not_count(store: Path, tmp_path: Path) -> None:
    """Catches: resuming from a step whose save was cut off."""
    finish(train(train_settings(store, tmp_path / "run", steps=4)))
    run = RunDir(tmp_path / "run")
    (run.step_path(4) / "meta.json").unlink()
    (run.path / ".saving-step-0000006").mkdir()
    (run.path / "step-0000001").mkdir()  # a removal that was cut off
    job = prepare(train_settings(store, run.path, steps=6), World(0, 1))
    assert job.resume.step == 2
    finish(train(train_settings(store, run.path, steps=4)))
    assert run.steps() == [2, 4]
    assert run.partial() == []
    assert not (run.path / "step-0000001").exists()
