"""A checkpoint that is opened: damaged files and missing ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.sample.stage import plan, sample
from sitcli.errors import SitError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.sample import SampleSettings
from tests.tiny import draw, finish


def test_damaged_or_missing_checkpoints(run: Path, tmp_path: Path) -> None:
    """Catches: a traceback for a truncated file."""
    with pytest.raises(SitError, match="there is no run"):
        draw(tmp_path / "nothing" / "x", "out")
    weights = open_checkpoint(run).path / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SitError, match="cannot read"):
        draw(run, "out")
    assert draw(run, "live", weights="model").complete


@pytest.mark.parametrize("meta", ["", "[]", "{}", '{"format": "sit-checkpoint"}'])
def test_a_damaged_checkpoint_is_one_line(run: Path, meta: str) -> None:
    """Catches: a traceback from a meta.json that is cut short or was edited."""
    (run / "step-0000007" / "meta.json").write_text(meta)
    with pytest.raises(SitError, match=r"is damaged|is not a checkpoint"):
        plan(SampleSettings(checkpoint=run))


def test_missing_weights_are_named(run: Path) -> None:
    """Catches: no way out of a checkpoint that lost a file."""
    (run / "step-0000007" / "ema.safetensors").unlink()
    with pytest.raises(SitError, match=r"cannot read .*ema.safetensors: there is no such") as info:
        finish(sample(SampleSettings(checkpoint=run, out=run.parent / "s", num=2, steps=1)))
    assert "older step" in info.value.hint
