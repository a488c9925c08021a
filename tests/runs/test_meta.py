"""meta.json: what is written and what is checked."""

from __future__ import annotations

from pathlib import Path

from sitcli.commands.train.stage import train
from sitcli.runs.checkpoint import open_checkpoint
from tests.tiny import finish, train_settings


def test_checkpoints_without_it_read_as_before(store: Path, tmp_path: Path) -> None:
    """Catches: fields in every meta.json that older versions do not know."""
    finish(train(train_settings(store, tmp_path / "run", steps=1)))
    meta = open_checkpoint(tmp_path / "run").meta
    assert meta["process"].keys() == {"interpolant", "prediction", "loss_weight"}
    assert not {"rope", "aux_block", "mlp"} & meta["transformer"].keys()
    assert "t_shift" not in meta
