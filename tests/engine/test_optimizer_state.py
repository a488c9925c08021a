"""The optimizer's state in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.train.stage import train
from sitcli.errors import SitError
from sitcli.runs.run_dir import RunDir
from tests.tiny import finish, train_settings


def test_state_that_is_not_whole(store: Path, tmp_path: Path) -> None:
    """Catches: training on with moments of zero where a file of the state is missing or damaged."""
    finish(train(train_settings(store, tmp_path / "run", steps=2)))
    state = RunDir(tmp_path / "run").newest() / "state"
    (file,) = state.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SitError, match=r"cannot read .*rank-00000-of-00001"):
        finish(train(train_settings(store, tmp_path / "run", steps=4)))
    file.rename(state / "rank-00000-of-00002.safetensors")
    with pytest.raises(SitError, match="files of state/ are missing"):
        finish(train(train_settings(store, tmp_path / "run", steps=4)))
    (state / "rank-00000-of-00002.safetensors").unlink()
    (state / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(SitError, match=r"in the form of sit 0\.2"):
        finish(train(train_settings(store, tmp_path / "run", steps=4)))
    assert RunDir(tmp_path / "run").steps() == [2]
