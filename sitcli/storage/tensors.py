"""Named tensors in safetensors files, which are on the disk when a write returns."""

from __future__ import annotations

import os
import re
from pathlib import Path

from torch import Tensor

from sitcli.errors import SitError
from sitcli.storage.files import sync_file


def read_tensors(path: Path, *, hint: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises SitError, with `hint`, if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        reason = error if path.exists() else "there is no such file"
        raise SitError(f"cannot read {path}: {reason}", hint) from None


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
        save_file(copies, path, metadata=metadata)
    except SafetensorError as error:  # the operating system's own, in other words
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(str(error)) from None
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(mode)  # it was made for its owner alone
    sync_file(path)
