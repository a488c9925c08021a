"""What `sit inspect` says of a run and of a checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest

from sitcli.errors import UsageError
from tests.commands.inspect.artefacts import facts, inspected, make_run


def test_run_and_step_are_described(tmp_path):
    """Catches: an unfinished checkpoint counted, the oldest taken for the newest, and lost
    facts."""
    directory = make_run(tmp_path / "run")
    result = inspected(directory.path, verify=True)
    shown = facts(result)
    assert result.data["steps"] == [10, 20]
    assert result.data["interrupted"] == [".saving-step-0000030"]
    assert shown["step"] == "20"
    assert "gvp, velocity prediction" in shown["process"]
    assert "model SiT-Mi/1, steps 40, lr 0.0001" in shown["settings"]
    assert "step 20, loss 0.05" in shown["last logged"]
    assert result.tables[1].rows[0][:2] == ["10", "0.10000"]
    assert result.next == f"sit sample {directory.path}"
    json.dumps(result.data)

    step = inspected(directory.step_path(10), verify=True)
    assert facts(step)["step"] == "10"
    assert step.data["params"] == result.data["newest"]["params"] > 0
    with pytest.raises(UsageError, match="no pictures to preview"):
        inspected(directory.path, preview=tmp_path / "grid.png")


def test_run_without_checkpoints(tmp_path):
    """Catches: an error for a run that was killed before its first save."""
    directory = make_run(tmp_path / "run")
    for step in directory.steps():
        shutil.rmtree(directory.step_path(step))
    result = inspected(directory.path, verify=True)
    assert facts(result)["checkpoints"] == "none"
    assert result.next == f"sit train --out {directory.path}"
