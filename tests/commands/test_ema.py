"""`sit ema`: an average nobody tracked, made of the snapshots of a training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from sitcli.commands.ema import average
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.train.stage import train
from sitcli.errors import SitError, UsageError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir, snapshot_name
from sitcli.settings.tools import InspectSettings
from sitcli.settings.weights import EmaSettings
from sitcli.storage.tensors import read_tensors
from tests.tiny import finish, train_settings
from tests.whole.beyond import EVERYTHING, drawn, train_with_everything


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train_with_everything(tmp_path_factory.mktemp("all"))


def test_averages_outlive_their_steps(trained: Path, tmp_path: Path) -> None:
    """Catches: snapshots that go with the checkpoints --keep removes."""
    run = RunDir(trained)
    assert run.steps() == [5, 6]
    assert sorted({s.step for s in run.snapshots()}) == [1, 2, 3, 4, 5, 6]
    out = tmp_path / "made"
    result = finish(average(EmaSettings(run=trained, std=0.07, out=out)))
    assert result.data["error"] < 0.2
    # Nothing trains on from an average, so it names no streams, and older versions may read it.
    assert "streams" in open_checkpoint(trained).meta
    assert "streams" not in open_checkpoint(out).meta
    assert open_checkpoint(out).meta["format_version"] == 2
    weights = open_checkpoint(out).weights("ema")
    made = {s: read_tensors(path) for s, path in run.snapshots().items()}
    factors = {(s["step"], s["std"]): s["factor"] for s in result.data["snapshots"]}
    key = "blocks.1.attn.qkv.weight"
    expected = sum(factors.get((s.step, s.std), 0.0) * made[s][key].double() for s in made)
    torch.testing.assert_close(weights[key], expected.float())
    assert torch.equal(weights["pos_embed"], made[next(iter(made))]["pos_embed"])
    again = finish(average(EmaSettings(run=trained, std=0.07, out=out)))
    assert again.path == result.path
    assert drawn(out, tmp_path / "drawn").complete
    assert finish(inspect(InspectSettings(path=out / "step-0000006", verify=True)))
    latents = Path(open_checkpoint(trained).latents["store"])
    with pytest.raises(UsageError, match="an average of another run"):
        finish(train(train_settings(latents, out, steps=9, **EVERYTHING)))


def test_average_refusals(trained: Path, tmp_path: Path, store: Path) -> None:
    """Catches: a run without averages, a step that is gone, or somebody's folder overwritten."""
    finish(train(train_settings(store, tmp_path / "plain", steps=1)))
    with pytest.raises(UsageError, match="keeps no averages"):
        finish(average(EmaSettings(run=tmp_path / "plain", std=0.1)))
    with pytest.raises(UsageError, match="no averages of that step"):
        finish(average(EmaSettings(run=trained, std=0.1, step=77)))
    with pytest.raises(UsageError, match="sit ema did not write it"):
        finish(average(EmaSettings(run=trained, std=0.1, out=tmp_path / "plain")))
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    file = copy / "averages" / "step-0000002" / snapshot_name(0.05)
    file.unlink()
    file.write_bytes(b"no tensors")
    with pytest.raises(SitError, match="cannot read"):
        finish(average(EmaSettings(run=copy, std=0.07, out=tmp_path / "out")))
    assert not (tmp_path / "out").exists()
