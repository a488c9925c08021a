"""`sit import`: what it asks rather than guesses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sitcli.commands.import_weights import import_weights, plan
from sitcli.commands.sample.labels import labels_of
from sitcli.errors import UsageError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.sample import SampleSettings
from sitcli.settings.weights import ImportSettings
from tests.tiny import finish
from tests.weights.official_files import CONFIG, bring, official, save, take


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


def test_names_of_classes(tmp_path: Path) -> None:
    """Catches: a thousand numbers where ImageNet's words are known, names taken for granted where
    nothing says so, and names that cannot be corrected."""
    thousand = official(dataclasses.replace(CONFIG, num_classes=1000, depth=1))
    file = save(tmp_path / "SiT-Mi-2.pt", thousand)
    result = finish(import_weights(ImportSettings(weights=file, out_dir=tmp_path / "a", heads=4)))
    assert any("taken to be ImageNet's" in note for note in result.data["notes"])
    assert result.summary["classes"].startswith("1000: tench, goldfish")
    names = open_checkpoint(tmp_path / "a").latents["class_names"]
    assert (len(names), names[207]) == (1000, "n02099601")
    settings = SampleSettings(num=2, classes="golden retriever,1")
    assert labels_of(settings, open_checkpoint(tmp_path / "a")).tolist() == [207, 1]
    assert bring(file, tmp_path / "b", heads=4, class_names="none").latents["class_names"] == []
    five = save(tmp_path / "SiT-5.pt", official())
    assert bring(five, tmp_path / "c").latents["class_names"] == []
    (tmp_path / "names.txt").write_text("a\nb\nc\nd, e\nf\n")
    own = bring(five, tmp_path / "d", class_names=str(tmp_path / "names.txt"))
    assert own.latents["class_names"] == ["a", "b", "c", "d, e", "f"]
    for said in ("imagenet", str(tmp_path / "names.txt")):
        weights = five if said == "imagenet" else file
        with pytest.raises(UsageError, match="--class-names: "):
            bring(weights, tmp_path / "e", class_names=said, heads=4)
    take(tmp_path / "d", tmp_path / "x.safetensors", "safetensors")
    again = bring(tmp_path / "x.safetensors", tmp_path / "f", class_names="none")
    assert again.latents["class_names"] == []
