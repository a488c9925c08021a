"""Folders of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sitcli.errors import SitError
from sitcli.images.place import Format, Place


def list_folder(path: Path, below: str = "", parents: frozenset = frozenset()) -> Iterator[Place]:
    """Every file below the folder, by name; links are followed, but not in circles.

    below: the prefix of names. parents: (device, inode) of the folders above.
    Raises SitError if a folder cannot be read.
    """
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise SitError(f"cannot read the folder {path}: {error.strerror}") from None
    info = os.stat(path)
    here = (info.st_dev, info.st_ino)
    if here in parents:  # a link to a folder above
        return
    for entry in entries:
        try:
            if entry.is_dir():
                yield from list_folder(Path(entry.path), f"{below}{entry.name}/", parents | {here})
            else:
                # A dangling link is listed too, and reported as broken when it is read.
                size = entry.stat().st_size if entry.is_file() else 0
                yield Place(below + entry.name, size)
        except OSError as error:
            raise SitError(f"cannot read {entry.path}: {error.strerror}") from None


def _piece(
    path: Path, descriptor: Callable[[], int], place: Place, start: int, length: int
) -> bytes:
    with open(path / place.file, "rb", buffering=0) as file:
        return os.pread(file.fileno(), length, start)


FORMAT = Format(
    endings=(),
    recognises=lambda path, head: path.is_dir(),
    places=lambda path: (list_folder(path), False),
    read=lambda path, descriptor, place: (path / place.file).read_bytes(),
    piece=_piece,
    file=lambda path, place: path / place.file,
    open=lambda path: path,
)
