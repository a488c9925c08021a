"""Which run the settings mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sitcli.commands.train.begun import begun, from_source
from sitcli.commands.train.stage import train
from sitcli.errors import UsageError
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import open_checkpoint
from tests.tiny import finish, make_run, train_settings, write_meta


def test_a_new_run_has_no_checkpoint_and_no_history(store: Path, tmp_path: Path) -> None:
    """Catches: a run that goes on from nothing."""

    settings = train_settings(store, tmp_path / "run")
    assert from_source(settings, {}) == (settings, None)
    _, run, resume, history = begun(settings, {}, LatentStore.open(store), torch.device("cpu"))
    assert (run.path, resume, history.changes) == (tmp_path / "run", None, ())


def test_imported_weights_are_no_run_to_go_on_with(store: Path, tmp_path: Path) -> None:
    """Catches: imported weights trained on with an optimizer that begins anew, without a word."""

    run = make_run(tmp_path)
    checkpoint = open_checkpoint(run)
    write_meta(checkpoint.path / "meta.json", checkpoint.meta | {"lineage": "official-sit"})
    with pytest.raises(UsageError, match="holds imported weights") as failure:
        finish(train(train_settings(store, run)))
    assert f"begin a run from them, with another --out: sit train --init {run}" in str(
        failure.value.hint
    )


def test_a_run_is_not_put_into_a_checkpoint(store: Path, tmp_path: Path) -> None:
    """Catches: a run that goes with the checkpoint that it lies in."""
    source = make_run(tmp_path)
    step = open_checkpoint(source).path
    for out in (step, step / "inner"):
        with pytest.raises(UsageError, match=f"{step.name} is a checkpoint"):
            finish(train(train_settings(store, out)))
