"""Files of other people's weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from sitcli.errors import SitError
from tests.weights.official_files import bring, save, trainer


class Touch:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_files_code_is_never_run(tmp_path: Path) -> None:
    """Catches: arbitrary unpickling, of a trainer's arguments or of a bare pickle."""
    marker = tmp_path / "ran"
    content = trainer(path_type="Linear", evil=Touch(marker))
    save(tmp_path / "SiT-a.pt", content)
    (tmp_path / "SiT-b.pt").write_bytes(pickle.dumps(Touch(marker)))
    for name in ("SiT-a.pt", "SiT-b.pt"):
        with pytest.raises(SitError, match=r"could run its code|cannot read"):
            bring(tmp_path / name, tmp_path / "run")
    assert not marker.exists()
    assert not (tmp_path / "run").exists()
