"""Reading .npz files safely: each member's header is checked first, and pickles are refused."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np

from sitcli.errors import SitError
from sitcli.text import first_line, format_shape

# What a damaged .npy, .npz or zip member raises, depending on which byte is wrong.
NPZ_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, OSError, SyntaxError, TypeError,
    RuntimeError, NotImplementedError, OverflowError, AttributeError, RecursionError, MemoryError,
    tokenize.TokenError,
)  # fmt: skip


class Header(NamedTuple):
    """The header of a member: its shape, type and order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of the .npy that begins here.

    Raises one of NPZ_ERRORS if there is none.
    """
    version = np.lib.format.read_magic(file)
    reader = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    return reader(file)


class Npz:
    """An .npz file open for reading. All its errors are SitErrors of one line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except NPZ_ERRORS as error:
            raise self._damaged(error) from None
        self._members = {
            name.removesuffix(".npy"): self._archive.getinfo(name)
            for name in self._archive.namelist()
            if name.endswith(".npy")
        }

    def __enter__(self) -> Npz:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._archive.close()

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._members)

    @property
    def identity(self) -> list[tuple[str, int, int]]:
        """Name, checksum and size of every member, sorted; it differs for other contents."""
        return sorted((e.filename, e.CRC, e.file_size) for e in self._archive.infolist())

    def header(self, name: str) -> Header:
        """Shape and type of an array. Raises SitError unless the member has all its bytes."""
        try:
            with self._archive.open(self._members[name]) as member:
                return self._header(name, member)
        except NPZ_ERRORS as error:
            raise self._damaged(error) from None

    def read(self, name: str, *, most: int) -> np.ndarray:
        """The array. Raises SitError if it has more than `most` elements."""
        header = self.header(name)
        if math.prod(header.shape) > most:
            raise SitError(
                f"{self.path}: {name} is {format_shape(header.shape)}, which no such file needs"
            )
        try:
            with self._archive.open(self._members[name]) as member:
                return np.lib.format.read_array(member, allow_pickle=False)
        except NPZ_ERRORS as error:
            raise self._damaged(error) from None

    def rows(self, name: str, indices: Sequence[int]) -> Generator[np.ndarray, None, None]:
        """Yield the rows with these increasing numbers, of an array in C order, one at a time."""
        try:
            with self._archive.open(self._members[name]) as member:
                shape, dtype, _ = self._header(name, member)
                begin, size = member.tell(), math.prod(shape[1:]) * dtype.itemsize
                for index in indices:
                    # A seek to the current position would switch the checksum off.
                    if member.tell() != begin + index * size:
                        member.seek(begin + index * size)
                    data = member.read(size)
                    if len(data) < size:
                        raise EOFError(f"{name} is cut short")
                    yield np.frombuffer(data, dtype).reshape(shape[1:])
        except NPZ_ERRORS as error:
            raise self._damaged(error) from None

    def _header(self, name: str, member: BinaryIO) -> Header:
        shape, fortran, dtype = read_header(member)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        size = self._members[name].file_size - member.tell()
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name} says it is {format_shape(shape)}, and has {size:,} bytes")
        return Header(shape, dtype, fortran)

    def _damaged(self, error: BaseException) -> SitError:
        reason = "there is no such file" if not self.path.exists() else first_line(error)
        return SitError(f"{self.path} is not a readable npz: {reason}", "write or fetch it again")
