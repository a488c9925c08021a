"""`sit inspect` on what is not ours, and a preview that cannot be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sitcli.errors import SitError
from tests.commands.inspect.artefacts import inspected, make_store


def test_what_is_not_ours(tmp_path):
    """Catches: a traceback of h5py, json or yaml for a file that is not ours."""
    import h5py

    make_store(tmp_path / "cut.h5")
    with open(tmp_path / "cut.h5", "rb+") as file:
        file.truncate(3000)
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = np.zeros(3)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "meta.json").write_text("{}")
    make_store(tmp_path / "lost.h5")
    with h5py.File(tmp_path / "lost.h5", "r+") as file:
        del file.attrs["scaling"]
    expected = {
        "nothing": "there is no",
        "cut.h5": "cut.h5",
        "text.h5": "is not a file of sit's",
        "foreign.h5": "not one that sit wrote",
        "photos": "is not a folder of sit's",
        "lost.h5": "is damaged: no 'scaling'",
    }
    for name, message in expected.items():
        with pytest.raises(SitError, match=message) as failure:
            inspected(tmp_path / name)
        assert "\n" not in failure.value.message


def test_preview_that_cannot_be_written(tmp_path):
    """Catches: a traceback of the system's error."""
    make_store(tmp_path / "a.h5")
    (tmp_path / "file").write_text("")
    for preview in (tmp_path / "file" / "grid.png", tmp_path, Path(".")):
        with pytest.raises(SitError, match="cannot write"):
            inspected(tmp_path / "a.h5", preview=preview)
