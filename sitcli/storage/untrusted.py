"""Files of weights from other people, read without running their code and in bounded memory."""

from __future__ import annotations

import argparse
import pathlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sitcli.errors import SitError
from sitcli.text import damage, first_line

# What trainers keep beside tensors, and nothing that does something when it is made.
ALLOWED = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath]
SLACK = 1 << 20  # headers and directories of a zip file


def read_content(path: Path) -> Any:
    """The contents of a .safetensors, .pt, .pth, .ckpt or .bin file; runs no code of the file.

    Tensors are on the CPU. Raises SitError for a file that cannot be read that way, or that would
    take more memory than it has bytes.
    """
    if not path.is_file():
        raise SitError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}", "name a file"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_zip(path)
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that torch writes itself
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        _check_size(path, content)
        return content
    except SitError:
        raise
    except Exception as error:  # pickle, zip, safetensors and torch each raise their own kinds
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise SitError(
                f"{path} holds more than tensors, and reading it could run its code",
                "convert it to .safetensors on a machine where you trust it",
            ) from None
        raise SitError(f"cannot read {path}: {damage(error)}", "fetch it again") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file. Raises SitError if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        raise SitError(f"cannot read {path}: {damage(error)}", "fetch it again") from None


def named_tensors(content: Any) -> dict[str, Tensor]:
    """The tensors in a file's contents, by name, also from a `state_dict`; {} if there are none."""
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        return {}
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _check_zip(path: Path) -> None:
    """torch stores members as they are: one that claims more than the file is a bomb."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > path.stat().st_size + SLACK:
        raise SitError(
            f"{path} claims {claimed:,} bytes of tensors in {path.stat().st_size:,}",
            "a file of torch is not compressed: fetch it again",
        )


def check_archive(path: Path) -> None:
    """Raise SitError if a member of a zip file, as torch writes them, is not what was written.

    Members whose CRC-32 is 0 were written by a torch that was told to compute none. A file that is
    no zip file is left to `read_content`.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    try:
        _check_zip(path)
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as content:
                    while member.CRC and content.read(1 << 22):
                        pass
    except SitError:
        raise
    except Exception as error:  # zipfile raises its own kinds, OSError, ValueError and more
        raise SitError(f"{path} is damaged: {first_line(error)}", "fetch it again") from None


def _check_size(path: Path, content: Any) -> None:
    """A tensor of strides 0, or many views of one storage, can be far larger than the file."""
    size, waiting, total = path.stat().st_size, [content], 0
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    # Tied weights are views of one storage, a few times over at most.
    if total > 4 * size + SLACK:
        raise SitError(
            f"{path} has {size:,} bytes, but its tensors would take {total:,}", "fetch it again"
        )


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .ckpt file, by name; runs no code of the file.

    Raises SitError if it cannot be read that way.
    """
    content = read_content(path)
    if not isinstance(content, dict):
        raise SitError(f"{path} holds no named tensors")
    return named_tensors(content)
