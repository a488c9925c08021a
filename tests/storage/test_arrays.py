"""Arrays in other people's files, read some rows at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sitcli.errors import SitError
from sitcli.storage.arrays import FileArray, open_arrays

VALUES = np.arange(60, dtype=np.float32).reshape(10, 3, 2)


def write(path: Path) -> str:
    """VALUES in a file of this kind; returns the name of the array in it."""
    if path.suffix == ".npy":
        np.save(path, VALUES)
        return ""
    if path.suffix == ".safetensors":
        save_file({"z": torch.from_numpy(VALUES), "n": torch.zeros(2, dtype=torch.bool)}, path)
    elif path.name == "packed.npz":
        np.savez_compressed(path, n=np.arange(3), z=VALUES)
    elif path.suffix == ".npz":
        np.savez(path, n=np.arange(3), z=VALUES)
    else:
        zarr = pytest.importorskip("zarr")
        zarr.open_group(str(path), mode="w").create_dataset(
            "z", shape=VALUES.shape, chunks=(4, 3, 2), dtype="float32"
        )[:] = VALUES
    return "z"


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "packed.npz", "a.safetensors", "a.zarr"])
def test_rows_of_every_kind_of_file(tmp_path: Path, name: str) -> None:
    """Catches: a wrong offset, rows that depend on what was read before, a lost dtype."""
    array = open_arrays(tmp_path / name)[key] if (key := write(tmp_path / name)) else None
    array = array or open_arrays(tmp_path / name)[""]
    assert (array.shape, array.dtype) == (VALUES.shape, torch.float32)
    assert array.at_once == (4 if name == "a.zarr" else 1)
    for start, stop in ((0, 4), (4, 10), (2, 3), (7, 9), (0, 10)):
        assert np.array_equal(array.read(start, stop).numpy(), VALUES[start:stop])


def test_an_array_that_is_not_compressed_is_read_in_place(tmp_path: Path) -> None:
    """Catches: an npz read from its beginning for every batch, which takes hours."""
    write(tmp_path / "a.npz")
    assert isinstance(open_arrays(tmp_path / "a.npz")["z"], FileArray)


def test_bfloat16_keeps_its_values(tmp_path: Path) -> None:
    """Catches: bytes taken for another type of 16 bits."""
    values = torch.from_numpy(VALUES).bfloat16()
    save_file({"z": values}, tmp_path / "a.safetensors")
    assert torch.equal(open_arrays(tmp_path / "a.safetensors")["z"].read(3, 9), values[3:9])


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "packed.npz", "a.safetensors"])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    """Catches: zeros, or a killed process, for rows that are not there."""
    key, path = write(tmp_path / name), tmp_path / name
    array, whole = open_arrays(path)[key], path.read_bytes()
    for length in (4, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(SitError, match=name):
            open_arrays(path)
        if isinstance(array, FileArray):
            with pytest.raises(SitError, match=r"cut short at row \d"):
                array.read(0, 10)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Catches: a traceback, a pickle that runs, rows and columns exchanged, swapped bytes."""
    for name, array, message in (
        ("object.npy", np.array([{}], dtype=object), "not a readable .npy|holds object"),
        ("fortran.npy", np.asfortranarray(VALUES), "Fortran order"),
        ("big.npy", VALUES.astype(">f4"), "which sit does not read"),
        ("text.npy", np.array(["a"]), "which sit does not read"),
    ):
        np.save(tmp_path / name, array, allow_pickle=True)
        with pytest.raises(SitError, match=message):
            open_arrays(tmp_path / name)
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(SitError, match="not a readable safetensors"):
        open_arrays(tmp_path / "x.safetensors")
    header = b'{"z":{"dtype":"F32","shape":[9,9],"data_offsets":[0,4]}}'
    (tmp_path / "y.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(SitError, match="another size than its shape"):
        open_arrays(tmp_path / "y.safetensors")
    with pytest.raises(SitError, match="is not a file of arrays"):
        open_arrays(tmp_path)
    with pytest.raises(SitError, match="does not exist"):
        open_arrays(tmp_path / "none.npy")


def test_a_zarr_folder_without_zarr_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    """Catches: an ImportError, or a folder that is said to hold nothing."""
    (tmp_path / "zarr.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(SitError, match="zarr is not installed") as caught:
        open_arrays(tmp_path)
    assert caught.value.hint == "pip install 'sitcli[zarr]'"
