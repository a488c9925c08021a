"""`sit export`: what it replaces and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.errors import UsageError
from tests.tiny import make_run
from tests.weights.official_files import take


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
