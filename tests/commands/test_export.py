"""`sit export`: what it replaces and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.export import export, plan
from sitcli.errors import UsageError
from sitcli.settings.weights import ExportSettings
from tests.tiny import finish, make_run
from tests.weights.official_files import bring, take


def test_export_replaces_only_its_own(tmp_path: Path) -> None:
    """Catches: a user's folder removed by --overwrite, or a file lost to a mistyped name."""
    run = make_run(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="sit export did not write it"):
        take(run, tmp_path / "mine", "diffusers", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    out = take(run, tmp_path / "x.safetensors", "safetensors")
    with pytest.raises(UsageError, match="exists already"):
        take(run, out, "safetensors")
    take(run, out, "safetensors", overwrite=True)
    folder = take(run, tmp_path / "folder", "diffusers")
    take(run, folder, "diffusers", overwrite=True)
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_an_official_export_is_two_files(tmp_path: Path) -> None:
    """Catches: a file beside the weights that nobody is told of, or one of an export before."""
    run = make_run(tmp_path)
    settings = ExportSettings(checkpoint=run, out=tmp_path / "out" / "x.pt", format="official-sit")
    planned = plan(settings)
    assert not (tmp_path / "out").exists()
    result = finish(export(settings))
    beside = tmp_path / "out" / "x.pt.sit.safetensors"
    assert result.data["sidecar"] == planned.data["sidecar"] == str(beside)
    assert str(beside) in result.summary["beside it"]
    before = beside.read_bytes()
    take(run, tmp_path / "out" / "x.pt", "official-sit", weights="model", overwrite=True)
    assert beside.read_bytes() != before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x.pt", beside.name]
    assert bring(tmp_path / "out" / "x.pt", tmp_path / "back").kinds == ["model"]
