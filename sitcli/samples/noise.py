"""Noise from a file, so that sampling can start from the noise of another implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sitcli.errors import SitError, UsageError
from sitcli.storage.files import hash_file
from sitcli.storage.npz import NPZ_ERRORS
from sitcli.text import first_line, format_shape


def open_noise(path: Path, shape: tuple[int, int, int]) -> Noise:
    """The noise in a .npy file of floats (N, *shape), which is memory-mapped.

    Raises SitError if the file does not hold an array of floats, UsageError for another shape.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except NPZ_ERRORS as error:
        raise SitError(
            f"cannot read the noise {path}: {first_line(error)}",
            "write one with numpy.save, float32 (N, C, h, w)",
        ) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise SitError(
            f"{path} does not hold an array of floats", "write one with numpy.save(path, noise)"
        )
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise UsageError(
            f"--noise {path} is {format_shape(array.shape)}, not N x {format_shape(shape)}",
            "give noise of the model's latent shape",
        )
    return Noise(path, array)


class Noise:
    """An array (N, C, h, w) of noise at t = 1; hash: sha256 of the file, in hex."""

    def __init__(self, path: Path, array: np.ndarray) -> None:
        self.path = path
        self.num = len(array)
        self.hash = hash_file(path)
        self._array = array

    def rows(self, indices: np.ndarray) -> Tensor:
        """Float32 copies of these rows. Raises SitError if they are not finite."""
        rows = torch.from_numpy(self._array[indices].astype(np.float32))
        if not bool(torch.isfinite(rows).all()):
            raise SitError(f"{self.path} holds noise that is not finite")
        return rows
