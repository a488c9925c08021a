"""A row file: fixed arrays of N rows in one HDF5 file that survives kill -9 at any moment.

The file gets its full size at creation (contiguous, early allocation, default library version,
closed once) and every byte is reserved, so that a full disk shows at once and not in the middle of
the work. Rows are then written in place with pwrite, without HDF5, and flagged afterwards in
`written`; readers map the arrays at their offsets. HDF5 itself serves for creation, attributes and
other tools: the file opens in plain h5py or HDFView.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from sitcli.errors import SitError
from sitcli.storage.files import open_same, sync_folder
from sitcli.storage.gather import Gather
from sitcli.storage.locks import check_writable, explained
from sitcli.text import damage

MISSING, DONE, BROKEN = 0, 1, 2  # the values of `written`
ALIGNMENT = dict(alignment_threshold=4096, alignment_interval=4096)  # arrays begin on a page
HEADERS = 65536  # most bytes that HDF5 writes beside the arrays
JSON_BEGINS = ("{", "[", '"')


def create(
    path: Path,
    datasets: Mapping[str, tuple[tuple[int, ...], str]],
    *,
    attrs: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray | Sequence[str]] | None = None,
) -> None:
    """Write an empty row file at `path`, replacing what is there in one rename.

    datasets: name -> ((N, ...), dtype), all with the same N; dtype as numpy writes it, "S40" for
        utf-8 text of at most 40 bytes. Rows begin as zeros; `written` (N,) uint8 is added.
    attrs: as `Rows.set_attrs` takes them.
    arrays: further datasets whose contents are known already, of any shape; text as a list of str.

    Raises SitError if the file cannot be created or the disk cannot hold it, and leaves no file.
    """
    num_rows = {shape[0] for shape, _ in datasets.values()}
    if len(num_rows) != 1:
        raise ValueError(f"the datasets of {path} differ in their number of rows: {num_rows}")
    fixed = {name: _as_array(value) for name, value in (arrays or {}).items()}
    layout = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in datasets.items()}
    layout["written"] = ((num_rows.pop(),), np.dtype(np.uint8))
    layout |= {name: (array.shape, array.dtype) for name, array in fixed.items()}
    size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values())

    # The name is always the same, so that the file of a killed creation is written over.
    temporary = path.with_name(f".{path.name}.creating")
    try:
        check_writable(path)
        with explained(path, size + HEADERS):
            _check_room(temporary, size + HEADERS)
            with h5py.File(temporary, "w", locking=False, **ALIGNMENT) as file:
                for name, (shape, dtype) in layout.items():
                    _allocate(file, name, shape, dtype)
                _write_attrs(file, attrs)
            _fill(temporary, fixed)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


class Rows:
    """An open row file: read any array, write whole rows. facts: of the file when it was opened.

    Any process can use it: only a writable file keeps a descriptor open.
    Raises SitError for a file that is absent, not HDF5 or cut short.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = Path(path)
        self._read_layout()
        self._descriptor: int | None = None
        if writable:
            with explained(self.path, 0):
                self._descriptor = os.open(self.path, os.O_RDWR)

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; arrays that `array` returned stay valid."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def names(self) -> list[str]:
        """Names of the datasets, `written` among them."""
        return list(self._layout)

    @property
    def num_rows(self) -> int:
        """N, finished or not."""
        return self._layout["written"].shape[0]

    @property
    def written(self) -> np.ndarray:
        """(N,) uint8 as it is now: MISSING, DONE or BROKEN."""
        return np.array(self.array("written"))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a dataset, rows first."""
        return self._layout[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Type of a dataset's elements."""
        return self._layout[name].dtype

    def gather(self, *names: str) -> Gather:
        """A reader of scattered rows of these datasets, which must have one shape and dtype."""
        parts = [self._layout[name] for name in names]
        offsets = [part.offset for part in parts]
        with open_same(self.path, self.facts) as file:
            return Gather(file, offsets=offsets, shape=parts[0].shape, dtype=parts[0].dtype)

    def array(self, name: str) -> np.ndarray:
        """A dataset as a read-only memory map, which sees rows written later."""
        part = self._layout[name]
        if 0 in part.shape:
            return np.zeros(part.shape, part.dtype)
        with open_same(self.path, self.facts) as file:
            return np.memmap(file, part.dtype, "r", offset=part.offset, shape=part.shape)

    def texts(self, name: str, indices: Sequence[int] | slice = slice(None)) -> list[str]:
        """Rows of a text dataset as str."""
        return [text.decode("utf-8", "surrogateescape") for text in self.array(name)[indices]]

    def write(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        status: int | Sequence[int] | np.ndarray = DONE,
        **rows: np.ndarray | Sequence[str],
    ) -> None:
        """Write rows by dataset name, then flag them with `status`; several may write at once.

        rows[name][k] goes to row indices[k]. The rows are on the disk before their flags are, so
        a flagged row is whole even after a power failure. Raises SitError when the disk is full.
        """
        indices = np.asarray(indices, np.int64)
        flags = np.broadcast_to(np.asarray(status, np.uint8), indices.shape)
        with explained(self.path, 0):
            for name, values in rows.items():
                self._write_rows(name, indices, values)
            _sync_data(self._descriptor)
            self._write_rows("written", indices, flags)

    def set_attrs(self, **attrs: Any) -> None:
        """Set attributes of the file; dicts, None and lists of text are stored as JSON text.

        A value of the same kind and size as before is replaced in place.
        """
        with explained(self.path, 0), h5py.File(self.path, "r+", locking=False) as file:
            _write_attrs(file, attrs)
        self.sync()
        self.attrs.update(attrs)

    def sync(self, *, forget: bool = False) -> None:
        """Return once everything is on the disk.

        forget: drop it from memory too, so that what is read next comes from the disk.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            if forget and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def in_memory(self, name: str, indices: Sequence[int] | np.ndarray) -> float:
        """The share of these rows whose first byte is in the page cache. Linux only.

        It does not read from the disk.
        """
        part = self._layout[name]
        row = part.dtype.itemsize * int(np.prod(part.shape[1:]))
        found = 0
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for index in indices:
                with contextlib.suppress(OSError):
                    offset = part.offset + int(index) * row
                    found += os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        finally:
            os.close(descriptor)
        return found / len(indices)

    def _write_rows(self, name: str, indices: np.ndarray, values: Any) -> None:
        part = self._layout[name]
        row = part.dtype.itemsize * int(np.prod(part.shape[1:]))
        values = _as_array(values)
        if values.dtype.kind == "S" and values.dtype.itemsize > part.dtype.itemsize:
            raise ValueError(f"text for '{name}' is longer than {part.dtype.itemsize} bytes")
        values = np.ascontiguousarray(values.astype(part.dtype, casting="same_kind", copy=False))
        if values.shape != (len(indices), *part.shape[1:]):
            raise ValueError(f"rows of '{name}': {values.shape} for {len(indices)} of {part.shape}")
        if len(indices) and not 0 <= indices.min() <= indices.max() < part.shape[0]:
            raise IndexError(f"row numbers beyond the {part.shape[0]} of {self.path}")
        # Neighbouring rows go in one call.
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(indices)], strict=True):
            offset = part.offset + int(indices[start]) * row
            _write_all(self._descriptor, values[start:stop], offset)

    def _read_layout(self) -> None:
        if not self.path.is_file():
            raise SitError(
                f"{self.path} does not exist"
                if not self.path.exists()
                else f"{self.path} is not a file"
            )
        try:
            self.facts = os.stat(self.path)
            with h5py.File(self.path, "r", locking=False) as file:
                self.attrs = {name: _decode(value) for name, value in file.attrs.items()}
                self._layout = {
                    name: _Part(d.dtype, d.shape, d.id.get_offset())
                    for name, d in file.items()
                    if isinstance(d, h5py.Dataset)
                }
        except PermissionError:
            raise SitError(f"cannot read {self.path}: permission denied") from None
        except Exception as error:  # h5py raises whatever the damaged bytes lead it to
            raise SitError(
                f"{self.path} is not a readable HDF5 file: {damage(error)}",
                "encode or draw it again",
            ) from None
        if "written" not in self._layout or any(
            part.offset is None and 0 not in part.shape for part in self._layout.values()
        ):
            raise SitError(f"{self.path} is an HDF5 file, but not one that sit wrote")
        # Another file may have taken the name meanwhile.
        with open_same(self.path, self.facts) as file:
            size = os.fstat(file.fileno()).st_size
        for name, part in self._layout.items():
            end = (part.offset or 0) + math.prod(part.shape) * part.dtype.itemsize
            if part.dtype.hasobject or end > size:
                raise SitError(f"{self.path} is damaged: '{name}' does not lie within the file")
        self.check({"written": "u1"}, {})

    def check(self, datasets: Mapping[str, str], attrs: Mapping[str, type | tuple]) -> None:
        """Raise SitError unless these datasets and attributes are there and of these types.

        datasets: name -> a type as numpy writes it and, after a colon, its number of dimensions
        (1 unless said); each has a row for each of `written`. "S" is text of any length.
        """
        num = self._layout["written"].shape[:1]
        for name, text in datasets.items():
            kind, _, ndim = text.partition(":")
            part = self._layout.get(name)
            if part is None:
                raise SitError(f"{self.path} is damaged: no '{name}'")
            alike = part.dtype.kind == "S" if kind == "S" else part.dtype == np.dtype(kind)
            if not alike or len(part.shape) != int(ndim or 1) or part.shape[:1] != num:
                raise SitError(
                    f"{self.path} is damaged: '{name}' is {part.dtype} {part.shape}, not {kind} of "
                    f"{ndim or 1} dimensions and {num[0] if num else 0} rows"
                )
        for name, kind in attrs.items():
            if name not in self.attrs:
                raise SitError(f"{self.path} is damaged: no '{name}'")
            value = self.attrs[name]
            # A bool is an int to Python, but must not stand for one here.
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise SitError(f"{self.path} is damaged: '{name}' is {str(value)[:40]!r}")


class _Part(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file; None where HDF5 has not placed it


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value)
    # File names may hold bytes that are not utf-8; they come back as they were.
    encoded = [text.encode("utf-8", "surrogateescape") for text in value]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    # h5py's own create_dataset allocates late: no offset to write at before the first write.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    if dtype.kind == "S":
        dtype = h5py.string_dtype("utf-8", dtype.itemsize)
    kind = h5py.h5t.py_create(dtype, logical=True)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), kind, space, properties)


def _check_room(path: Path, size: int) -> None:
    """Create the file at `path`.

    HDF5 would notice a full disk too, but could not close its file afterwards.
    Raises OSError if the file cannot be created or the disk has fewer than `size` bytes left.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o666)
    try:
        os.ftruncate(descriptor, size)  # fails beyond the largest file allowed
    finally:
        os.close(descriptor)
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fill(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Reserve every byte of the file at `path` and write `arrays` to it."""
    with Rows(path) as rows, open(path, "rb+") as file:
        descriptor = file.fileno()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
        for name, array in arrays.items():
            _write_all(descriptor, array, rows._layout[name].offset)
        os.fsync(descriptor)


def _write_all(descriptor: int, array: np.ndarray, offset: int) -> None:
    data = memoryview(array.reshape(-1).view(np.uint8))
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _sync_data(descriptor: int) -> None:
    # macOS has no fdatasync.
    getattr(os, "fdatasync", os.fsync)(descriptor)


def _write_attrs(file: h5py.File, attrs: Mapping[str, Any]) -> None:
    for name, value in attrs.items():
        data = _encode(value)
        if name in file.attrs and _same_kind(file.attrs.get_id(name), data):
            # In place: nothing in the file moves, so a kill here cannot break it.
            file.attrs.modify(name, data)
        else:
            file.attrs.create(name, data)
    file.flush()


def _same_kind(attribute: h5py.h5a.AttrID, data: Any) -> bool:
    if isinstance(data, str):
        return False
    return attribute.shape == data.shape and attribute.dtype == data.dtype


def _encode(value: Any) -> np.ndarray | str:
    """Numbers and lists of numbers natively, text as utf-8, anything else as JSON text."""
    if isinstance(value, (list, tuple)):
        array = np.asarray(value) if value else np.array([], dtype=object)
        value = array if array.dtype.kind in "iufb" else value
    if isinstance(value, (bool, int, float, np.generic, np.ndarray)):
        return np.asarray(value)
    # Text that would read as JSON is quoted as JSON.
    if not isinstance(value, str) or value[:1] in JSON_BEGINS or value == "null":
        value = json.dumps(value, ensure_ascii=False)
    raw = value.encode("utf-8", "surrogateescape")
    if len(raw) > 32_000:  # HDF5 keeps at most 64 KiB in place
        return value
    return np.array(raw, h5py.string_dtype("utf-8", max(1, len(raw))))


def _decode(value: Any) -> Any:
    """The inverse of _encode, with lists for arrays."""
    if isinstance(value, (np.ndarray, np.generic)) and not isinstance(value, np.bytes_):
        return value.tolist()
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    return json.loads(text) if text[:1] in JSON_BEGINS or text == "null" else text
