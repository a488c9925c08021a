"""Members of an npz: what they say of themselves, their rows, and damage."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from sitcli.errors import SitError
from sitcli.storage.npz import Npz

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)


@pytest.fixture(params=["stored", "deflated"])
def path(request, tmp_path: Path) -> Path:
    write = np.savez if request.param == "stored" else np.savez_compressed
    write(tmp_path / "a.npz", images=IMAGES, mu=np.arange(3.0), turned=np.asfortranarray(IMAGES))
    return tmp_path / "a.npz"


def test_arrays_are_numpys(path: Path) -> None:
    """Catches: a shape, type or order that is not the array's."""
    with Npz(path) as file:
        assert file.names == ["images", "mu", "turned"]
        assert file.header("images") == ((7, 4, 5, 3), np.dtype("u1"), False)
        assert file.header("turned").fortran
        assert np.array_equal(file.read("images", most=IMAGES.size), IMAGES)
        assert np.array_equal(file.read("turned", most=IMAGES.size), IMAGES)


def test_more_than_was_asked_for_is_not_read(path: Path) -> None:
    """Catches: a file of statistics that fills the memory."""
    with Npz(path) as file, pytest.raises(SitError, match="mu is 3, which no such file needs"):
        file.read("mu", most=2)


@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 5, 6], [0, 3, 6], [5], []])
def test_rows_are_those_that_were_asked_for(path: Path, indices: list[int]) -> None:
    """Catches: rows at a wrong offset where some are left out."""
    with Npz(path) as file:
        found = [row.copy() for row in file.rows("images", indices)]
    assert len(found) == len(indices)
    assert all(np.array_equal(row, IMAGES[i]) for row, i in zip(found, indices, strict=True))


def test_another_content_has_another_identity(tmp_path: Path) -> None:
    """Catches: kept features used for other images of the same name and size."""
    identities = []
    for i, images in enumerate([IMAGES, IMAGES, IMAGES[::-1], IMAGES[:6]]):
        np.savez(tmp_path / f"{i}.npz", images=images)
        with Npz(tmp_path / f"{i}.npz") as file:
            identities.append(file.identity)
    assert identities[0] == identities[1]
    assert len(set(map(str, identities))) == 3


def test_a_changed_byte_is_found_in_reading_all_rows(tmp_path: Path) -> None:
    """Catches: a checksum that seeking between rows switches off."""
    np.savez(tmp_path / "a.npz", images=IMAGES)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(IMAGES[5].tobytes()) + 7] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with Npz(tmp_path / "a.npz") as file, pytest.raises(SitError, match="not a readable npz"):
        list(file.rows("images", range(7)))


def write_member(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", data)
    return path


def header(text: str, *, version: bytes = b"\x01\x00") -> bytes:
    line = text.encode() + b"\n"
    return b"\x93NUMPY" + version + len(line).to_bytes(2, "little") + line


DAMAGED = {
    "objects": header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + bytes(8),
    "too short": header("{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}") + bytes(8),
    "too long": header("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}") + bytes(16),
    "huge": header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,)}"),
    "no shape": header("{'descr': '<f8', 'fortran_order': False}") + bytes(8),
    "code": header("{'descr': __import__('os').getcwd(), 'shape': ()}"),
    "later version": header("{}", version=b"\x09\x00"),
    "no array": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_array_is_one_line(tmp_path: Path, kind: str) -> None:
    """Catches: numpy's own error, a pickle that is read, or memory for what is not there."""
    path = write_member(tmp_path / "a.npz", DAMAGED[kind])
    with Npz(path) as file:
        for read in (lambda: file.header("x"), lambda: list(file.rows("x", [0]))):
            with pytest.raises(SitError, match="is not a readable npz") as caught:
                read()
            assert "\n" not in caught.value.message
        with pytest.raises(SitError):
            file.header("y")


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    """Catches: zipfile's own error."""
    (tmp_path / "a.npz").write_text("hello")
    with pytest.raises(SitError, match="not a readable npz"):
        Npz(tmp_path / "a.npz")
    with pytest.raises(SitError, match="there is no such file"):
        Npz(tmp_path / "b.npz")
