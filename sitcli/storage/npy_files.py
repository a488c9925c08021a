"""Thousands of .npy files of one shape and type, read as one array with a row for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sitcli.errors import SitError
from sitcli.storage.arrays import AGAIN, fill, opened, read_npy_header
from sitcli.text import format_shape


class NpyFiles:
    """The files `names` below `folder`, which must have the shape and type of the first.

    numpy writes arrays of one shape and type with the same header: what differs from the first
    header is looked at, all else is read at once.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names
        self._first = first = read_npy_header(folder / names[0])
        self.dtype, self.row_shape = first.dtype, first.shape
        with opened(first.path) as descriptor:
            self._header = os.pread(descriptor, first.begin, 0)

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Raise SitError for the first file whose size is not that of the first file."""
        expected = sizes[0]
        for name, size in zip(self._names, sizes, strict=True):
            if size != expected:
                read_npy_header(self._folder / name)  # says that it is cut short, if it is
                self._refuse(name)

    def read(self, start: int, stop: int) -> Tensor:
        """Files start to stop, (n, ...). Raises SitError naming a file that is not as the first."""
        rows = torch.empty((stop - start, *self.row_shape), dtype=self.dtype)
        raw = rows.view(stop - start, -1).view(torch.uint8).numpy()
        begin, size = len(self._header), raw.shape[1]
        header, beyond = bytearray(begin), bytearray(1)
        for row, name in enumerate(self._names[start:stop]):
            with opened(self._folder / name) as descriptor:
                count = os.preadv(descriptor, [header, memoryview(raw[row]), beyond], 0)
                if header != self._header:
                    self._refuse(name)
                if count < begin + size:  # interrupted, or cut short
                    count = begin + fill(descriptor, rows[row], begin)
            if count != begin + size:
                read_npy_header(self._folder / name)
                raise SitError(f"{self._folder / name} holds more than its array", AGAIN)
        return rows

    def _refuse(self, name: str) -> None:
        found, first = read_npy_header(self._folder / name), self._first
        kinds = [f"{format_shape(a.shape)} {str(a.dtype)[6:]}" for a in (found, first)]
        raise SitError(
            f"{found.path} is {kinds[0]}, and {first.path.name} is {kinds[1]}",
            "repair or remove it",
        )
