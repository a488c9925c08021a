"""Named tensors in safetensors files, which are on the disk when a write returns.

Each file keeps a CRC-32 of every tensor, and one of its names, shapes and other metadata, in its
own header, under the key `crc32`: readers that do not know of it ignore it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sitcli.errors import SitError
from sitcli.storage.files import sync_file
from sitcli.text import damage

CHECKSUMS = "crc32"
HEADER = ""  # the key of the header's own checksum; no tensor is called so


class Verified(NamedTuple):
    """Result of `verify_tensors`: whether the file has checksums, and what contradicts them."""

    recorded: bool
    problems: list[str]


def read_tensors(path: Path, *, hint: str = "", verify: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises SitError, with `hint`, if it cannot be read.

    The header is verified. The tensors are only if `verify` says so, which takes longer than to
    read them: see `verified_tensors`.
    """
    if verify:
        return dict(verified_tensors(path, hint=hint))
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            check_header(file)
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        reason = damage(error) if path.exists() else "there is no such file"
        raise SitError(f"cannot read {path}: {reason}", hint) from None


def check_header(file: Any) -> None:
    """Raise ValueError if the header of an open safetensors file is not as it was written."""
    metadata = dict(file.metadata() or {})
    sums = _sums_in(metadata)
    if sums and _header_sum(metadata, _shapes_in(file).items()) != sums.get(HEADER):
        raise ValueError("its header is not what was written")


def has_checksums(path: Path) -> bool:
    """Whether a safetensors file keeps checksums. Raises SitError if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return CHECKSUMS in (file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise SitError(f"cannot read {path}: {damage(error)}") from None


def identity(path: Path) -> str | None:
    """What tells the contents of a file from those of others, by its checksums; None without any.

    Raises SitError if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            sums = (file.metadata() or {}).get(CHECKSUMS)
    except (OSError, SafetensorError) as error:
        reason = damage(error) if path.exists() else "there is no such file"
        raise SitError(f"cannot read {path}: {reason}") from None
    return None if sums is None else hashlib.sha256(sums.encode()).hexdigest()


def verify_tensors(path: Path) -> Verified:
    """Read every byte of a safetensors file and compare it with the file's checksums.

    A problem names the tensor. Raises SitError if the file cannot be read.
    """
    if not has_checksums(path):
        return Verified(False, [])
    problems: list[str] = []
    for _ in _verified(path, problems):
        pass
    return Verified(True, problems)


def verified_tensors(path: Path, *, hint: str = "") -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of a safetensors file, one after another, each verified.

    A file without checksums is read as it is. Raises SitError, with `hint`, for a file that is
    not what was written or cannot be read.
    """
    problems: list[str] = []
    try:
        for item in _verified(path, problems):
            if problems:
                break
            yield item
    except SitError as error:
        raise SitError(str(error), hint) from None
    if problems:
        raise SitError(f"{path} is damaged: {problems[0]}", hint)


def _verified(path: Path, problems: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of a file; what contradicts its checksums is added to `problems`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            sums, shapes = _sums_in(metadata), _shapes_in(file)
            if sums and _header_sum(metadata, shapes.items()) != sums.get(HEADER):
                problems.append("its header is not what was written")
            for name in shapes:
                tensor = file.get_tensor(name)
                if sums and checksum(tensor) != sums.get(name):
                    problems.append(f"'{name}' is not what was written")
                yield name, tensor
    except (OSError, SafetensorError, ValueError) as error:
        raise SitError(f"cannot read {path}: {damage(error)}") from None


def write_tensors(
    path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file of contiguous copies on the CPU; it is on the disk at the return.

    Raises OSError if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        path.touch()
        mode = path.stat().st_mode
        copies = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(copies, path, metadata=_with_sums(copies, metadata or {}))
    except SafetensorError as error:  # the operating system's own, in other words
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(str(error)) from None
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(mode)  # it was made for its owner alone
    sync_file(path)


def checksum(tensor: Tensor) -> str:
    """CRC-32, in hex, of the bytes of a contiguous tensor on the CPU.

    zlib computes it without Python's lock: a thread that writes does not hold up training.
    """
    return f"{zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy()):08x}"


def _with_sums(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    sums = {name: checksum(tensor) for name, tensor in tensors.items()}
    shapes = ((name, list(tensor.shape)) for name, tensor in tensors.items())
    sums[HEADER] = _header_sum(metadata, shapes)
    return metadata | {CHECKSUMS: json.dumps(sums)}


def _header_sum(metadata: dict[str, str], shapes: Iterable[tuple[str, list[int]]]) -> str:
    facts = sorted((k, v) for k, v in metadata.items() if k != CHECKSUMS), sorted(shapes)
    return f"{zlib.crc32(json.dumps(facts).encode()):08x}"


def _shapes_in(file: Any) -> dict[str, list[int]]:
    return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _sums_in(metadata: dict[str, str]) -> dict[str, str]:
    """The file's checksums, {} if it has none. Raises ValueError if they cannot be read."""
    sums = json.loads(metadata.get(CHECKSUMS, "{}"))
    if not isinstance(sums, dict):
        raise ValueError("its checksums are not what was written")
    return sums
