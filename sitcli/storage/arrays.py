"""Arrays in other people's files, some rows at a time: .npy, .npz, .safetensors and zarr.

Rows are read at their offset instead of mapped: a file that is cut short meanwhile is an error, and
not a signal that kills the process. No code of a file is run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sitcli.errors import SitError
from sitcli.storage.npz import NPZ_ERRORS, Npz, read_header
from sitcli.text import first_line

SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
MOST_HEADER = 100_000_000  # bytes, as safetensors itself limits it
AGAIN = "write or fetch it again"


class Array(Protocol):
    """An array of shape (N, ...) in a file; at_once: rows that lie together in a chunk."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    at_once: int

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop. Raises SitError if they cannot be read."""
        ...


@dataclass(frozen=True)
class FileArray:
    """An array that lies in a file as it is, in C order and this machine's byte order.

    name: within the file, "" if it holds no other; begin: the byte of its first element.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    at_once: int = 1

    def check(self) -> FileArray:
        """This array. Raises SitError unless the file has all of its bytes."""
        end = self.begin + math.prod(self.shape) * self.dtype.itemsize
        if self.begin < 0 or min(self.shape, default=0) < 0 or end > self.path.stat().st_size:
            size = self.path.stat().st_size
            raise SitError(
                f"{self.path} is cut short: {size:,} bytes, and its header speaks of {end:,}", AGAIN
            )
        return self

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop. Raises SitError if the file ends before them."""
        rows = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with opened(self.path) as descriptor:
            done = fill(descriptor, rows, self.begin + start * size)
        if done < rows.nbytes:
            row = start + done // max(1, size)
            raise SitError(f"{self.path} is cut short at row {row}", AGAIN)
        return rows


class NpzArray:
    """A compressed array of an .npz file. Reading on from the last row is fast; back is not."""

    at_once = 1

    def __init__(self, path: Path, name: str) -> None:
        with Npz(path) as file:
            header = file.header(name)
        self.path, self.name, self.shape = path, name, header.shape
        self.dtype = torch_dtype(header.dtype, path)
        check_order(header.fortran, header.shape, path)
        self._at, self._rows = 0, iter(())

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop."""
        if start < self._at or start == 0:
            self._rows, self._at = self._from(start), start
        for _ in range(self._at, start):
            next(self._rows)
        self._at = stop
        return torch.from_numpy(np.stack([next(self._rows) for _ in range(stop - start)]))

    def _from(self, start: int) -> Iterator[np.ndarray]:
        with Npz(self.path) as file:
            yield from file.rows(self.name, range(start, self.shape[0]))


class ZarrArray:
    """An array in a zarr folder."""

    def __init__(self, path: Path, name: str, array: Any) -> None:
        self.path, self.name, self._array = path, name, array
        self.shape, self.dtype = tuple(array.shape), torch_dtype(np.dtype(array.dtype), path)
        self.at_once = max(1, min(array.chunks[0], self.shape[0])) if self.shape else 1

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop. Raises SitError for a chunk that cannot be read."""
        try:
            return torch.from_numpy(np.ascontiguousarray(self._array[start:stop]))
        except Exception as error:  # zarr and each of its codecs raise their own
            raise SitError(
                f"{self.path}: rows {start} to {stop - 1} cannot be read: {first_line(error)}",
                AGAIN,
            ) from None


def open_arrays(path: Path) -> dict[str, Array]:
    """The arrays of numbers in a file or zarr folder, by name.

    Raises SitError if it is of none of these kinds, is damaged, or needs zarr where that is not.
    """
    if is_zarr(path):
        return _zarr(path)
    reader = READERS.get(path.suffix)
    if reader is None or not path.is_file():
        what = "does not exist" if not path.exists() else "is not a file of arrays that sit reads"
        raise SitError(f"{path} {what}", f"it reads {', '.join(READERS)} and zarr folders")
    return reader(path)


def is_zarr(path: Path) -> bool:
    """Whether this is a folder of zarr's format 2 or 3."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def read_npy_header(path: Path) -> FileArray:
    """The array of an .npy file. Raises SitError if it is no array of numbers in C order."""
    try:
        with open(path, "rb") as file:
            shape, fortran, dtype = read_header(file)
            begin = file.tell()
    except NPZ_ERRORS as error:
        raise SitError(f"{path} is not a readable .npy: {first_line(error)}", AGAIN) from None
    check_order(fortran, shape, path)
    return FileArray(path, "", shape, torch_dtype(dtype, path), begin).check()


def torch_dtype(dtype: np.dtype, path: Path) -> torch.dtype:
    """The same type in torch. Raises SitError if torch has none, or it is of other byte order."""
    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except (TypeError, ValueError):
        raise SitError(
            f"{path} holds {dtype}, which sit does not read", "save it as little-endian float32"
        ) from None


def check_order(fortran: bool, shape: tuple[int, ...], path: Path) -> None:
    """Raise SitError for columns before rows."""
    if fortran and len(shape) > 1:
        raise SitError(
            f"{path} is in Fortran order", "save it again with numpy.ascontiguousarray(array)"
        )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """The descriptor of a file open for reading. Raises SitError if it cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fill(descriptor: int, rows: Tensor, offset: int) -> int:
    """Fill `rows` with the file's bytes from `offset` on; returns how many there were."""
    data, done = memoryview(rows.view(-1).view(torch.uint8).numpy()), 0
    while done < len(data) and (count := os.preadv(descriptor, [data[done:]], offset + done)):
        done += count
    return done


def _npy(path: Path) -> dict[str, Array]:
    return {"": read_npy_header(path)}


def _npz(path: Path) -> dict[str, Array]:
    with Npz(path) as file:
        names = file.names
    try:
        with zipfile.ZipFile(path) as archive:
            stored = [archive.getinfo(f"{name}.npy").compress_type == 0 for name in names]
    except NPZ_ERRORS as error:
        raise SitError(f"{path} is not a readable npz: {first_line(error)}", AGAIN) from None
    return {
        name: _stored_member(path, name) if plain else NpzArray(path, name)
        for name, plain in zip(names, stored, strict=True)
    }


def _stored_member(path: Path, name: str) -> FileArray:
    """A member that is not compressed lies in the zip file as it is."""
    with Npz(path) as file:
        header = file.header(name)
    check_order(header.fortran, header.shape, path)
    with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
        member = archive.getinfo(f"{name}.npy")
        raw.seek(member.header_offset)
        lengths = struct.unpack("<26xHH", raw.read(30))  # of the name and the extra field
        size = math.prod(header.shape) * header.dtype.itemsize
        begin = member.header_offset + 30 + sum(lengths) + member.file_size - size
    dtype = torch_dtype(header.dtype, path)
    return FileArray(path, name, header.shape, dtype, begin).check()


def _safetensors(path: Path) -> dict[str, Array]:
    found: dict[str, Array] = {}
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MOST_HEADER, path.stat().st_size):
                raise ValueError(f"its header claims {length:,} bytes")
            header = json.loads(file.read(length))
        for name, facts in header.items():
            if name == "__metadata__" or facts["dtype"] not in SAFETENSORS:
                continue
            (begin, end), shape = facts["data_offsets"], tuple(facts["shape"])
            dtype = SAFETENSORS[facts["dtype"]]
            if end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} has another size than its shape")
            found[name] = FileArray(path, name, shape, dtype, 8 + length + begin).check()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
            struct.error) as error:  # fmt: skip
        raise SitError(f"{path} is not a readable safetensors file: {first_line(error)}", AGAIN) \
            from None  # fmt: skip
    return found


def _zarr(path: Path) -> dict[str, Array]:
    try:
        import zarr
    except ImportError:
        raise SitError(
            f"{path} is a zarr folder, and zarr is not installed", "pip install 'sitcli[zarr]'"
        ) from None
    try:
        root = zarr.open(str(path), mode="r")
        arrays = {"": root} if hasattr(root, "shape") else dict(root.arrays())
    except Exception as error:  # zarr raises its own kinds, KeyError, ValueError and OSError
        raise SitError(f"{path} is not a readable zarr folder: {first_line(error)}") from None
    return {name: ZarrArray(path, name, array) for name, array in arrays.items()}


READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
}
