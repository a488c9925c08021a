"""Many .npy files read as one array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sitcli.errors import SitError
from sitcli.storage.npy_files import NpyFiles

VALUES = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
NAMES = [f"{i % 2}/{i}.npy" for i in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, row in zip(NAMES, VALUES, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, row)
    return tmp_path


def sizes(folder: Path) -> list[int]:
    return [(folder / name).stat().st_size for name in NAMES]


def test_rows_are_the_files(folder: Path) -> None:
    """Catches: another order, or a header read as values."""
    files = NpyFiles(folder, NAMES)
    assert files.row_shape == (3, 2)
    assert np.array_equal(files.read(0, 10).numpy(), VALUES)
    assert np.array_equal(files.read(3, 5).numpy(), VALUES[3:5])
    files.check_sizes(sizes(folder))


def test_a_file_that_differs_is_named(folder: Path) -> None:
    """Catches: values of another type or shape read as floats, and zeros past a file's end."""
    path = folder / NAMES[6]
    whole = path.read_bytes()
    cases = {
        "1 bytes|cut short": whole[:-1],
        "holds more than its array": whole + b"x",
        "not a readable .npy": b"",
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(SitError, match=message) as caught:
            NpyFiles(folder, NAMES).read(0, 10)
        assert "6.npy" in caught.value.message
    for array, message in (
        (VALUES[6].astype(np.float16), "is 3 x 2 float16, and 0.npy is 3 x 2 float32"),
        (VALUES[6].view(np.int32), "3 x 2 int32"),
        (VALUES[6].T.copy(), "2 x 3 float32"),
    ):
        np.save(path, array)
        with pytest.raises(SitError, match=message):
            NpyFiles(folder, NAMES).read(4, 8)
    np.save(path, np.zeros((4, 2), np.float32))
    with pytest.raises(SitError, match=r"6\.npy"):
        NpyFiles(folder, NAMES).check_sizes(sizes(folder))
    path.unlink()
    with pytest.raises(SitError, match=r"cannot read .*6\.npy"):
        NpyFiles(folder, NAMES).read(0, 10)
