"""What `sit train` says: of what it would do, and at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.train.stage import plan, train
from tests.tiny import finish, train_settings


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
