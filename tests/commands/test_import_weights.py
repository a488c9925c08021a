"""`sit import`: what it asks rather than guesses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sitcli.commands.import_weights import plan
from sitcli.errors import UsageError
from sitcli.settings.weights import ImportSettings
from tests.weights.official_files import CONFIG, bring, official, save


def test_what_nothing_tells_is_asked(tmp_path: Path) -> None:
    """Catches: a guess between two networks that look alike, whose samples would be noise."""
    file = save(tmp_path / "weights.pt", official())
    with pytest.raises(UsageError, match="cannot tell whether") as caught:
        bring(file, tmp_path / "run")
    assert "--model" in caught.value.hint
    assert bring(file, tmp_path / "a", model="DiT-Mi/2").meta["lineage"] == "official-dit"
    assert bring(file, tmp_path / "b", model="SiT-Mi/2").meta["model"] == "SiT-Mi/2"
    with pytest.raises(UsageError, match="has 12 blocks of width 768 and patch 2"):
        bring(file, tmp_path / "c", model="SiT-B/2")
    half = save(tmp_path / "half.pt", official(dataclasses.replace(CONFIG, out_channels=4)))
    with pytest.raises(UsageError, match="opposite directions"):
        bring(half, tmp_path / "c", model="SiT-Mi/2")
    odd = dataclasses.replace(CONFIG, width=96, heads=3)
    with pytest.raises(UsageError, match="number of attention heads"):
        bring(save(tmp_path / "SiT-odd.pt", official(odd)), tmp_path / "c")
    assert bring(tmp_path / "SiT-odd.pt", tmp_path / "d", heads=3).config == odd
    three = dataclasses.replace(CONFIG, channels=3, out_channels=6)
    with pytest.raises(UsageError, match="of 3 channels"):
        bring(save(tmp_path / "SiT-3.pt", official(three)), tmp_path / "c")
    with pytest.raises(UsageError, match="4 channels, and pixels has 3"):
        bring(file, tmp_path / "c", model="SiT-Mi/2", vae="pixels")
    with pytest.raises(UsageError, match="a run already"):
        bring(file, tmp_path / "a", model="SiT-Mi/2")
    with pytest.raises(UsageError, match="--interpolant is for SiT"):
        bring(file, tmp_path / "c", model="DiT-Mi/2", interpolant="gvp")
    with pytest.raises(UsageError, match="--model is a DiT"):
        bring(file, tmp_path / "c", model="DiT-Mi/2", lineage="official-sit")
    settings = ImportSettings(weights=file, out_dir=tmp_path / "c", model="SiT-Mi/2")
    assert plan(settings).data["dry_run"]
    assert not (tmp_path / "c").exists()
