"""Given noise: the rows of a file, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.errors import SitError, UsageError
from sitcli.samples.noise import open_noise

SHAPE = (3, 4, 4)


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_rows_are_the_files(tmp_path: Path, dtype: str) -> None:
    """Catches: rows given to other images, or noise in another precision than float32."""
    array = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype(dtype)
    noise = open_noise(save(tmp_path / "a.npy", array), SHAPE)
    assert noise.num == 6
    found = noise.rows(np.array([4, 0, 4]))
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), array[[4, 0, 4]].astype(np.float32))
    found.zero_()  # a copy: the file stays as it is
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)


def test_the_hash_is_the_files(tmp_path: Path) -> None:
    """Catches: a set that goes on with other noise of the same shape."""
    arrays = [np.zeros((2, *SHAPE), "f4"), np.zeros((2, *SHAPE), "f4"), np.ones((2, *SHAPE), "f4")]
    files = [save(tmp_path / f"{i}.npy", array) for i, array in enumerate(arrays)]
    hashes = [open_noise(file, SHAPE).hash for file in files]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("shape", [(6, 3, 4), (6, 4, 4, 3), (0, 3, 4, 4), (3, 4, 4), (6, 3, 4, 8)])
def test_noise_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Catches: a broadcast that gives every image the same noise, or pictures on their side."""
    path = save(tmp_path / "a.npy", np.zeros(shape, "f4"))
    with pytest.raises(UsageError, match="not N x 3 x 4 x 4"):
        open_noise(path, SHAPE)


def test_what_is_no_noise_is_one_line(tmp_path: Path) -> None:
    """Catches: an unpickled object, numpy's own error, or integers taken for noise."""
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    save(tmp_path / "bytes.npy", np.zeros((2, *SHAPE), "u1"))
    np.savez(tmp_path / "several.npz", a=np.zeros((2, *SHAPE), "f4"))
    for name in ("text.npy", "objects.npy", "bytes.npy", "several.npz", "none.npy"):
        with pytest.raises(SitError) as caught:
            open_noise(tmp_path / name, SHAPE)
        assert "\n" not in caught.value.message
    array = np.zeros((2, *SHAPE), "f4")
    array[1, 0, 0, 0] = np.nan
    noise = open_noise(save(tmp_path / "nan.npy", array), SHAPE)
    noise.rows(np.array([0]))
    with pytest.raises(SitError, match="not finite"):
        noise.rows(np.array([0, 1]))
