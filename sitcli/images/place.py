"""The place of one image in a source, and the interface of a format of sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple


class BrokenImage(Exception):
    """An image cannot be used; the text is the reason, without the image's name."""


class Place(NamedTuple):
    """The place of one file in a source.

    file: path below the source folder, or the member's name in the archive. size: its unpacked
    size in bytes. offset: the byte of the archive at which the member begins. more: further
    values that its format needs to read it. crc: the CRC-32 of its bytes if the archive lists it.
    """

    file: str
    size: int
    offset: int = 0
    more: tuple[Any, ...] = ()
    crc: int | None = None


def whole(data: bytes, place: Place) -> bytes:
    """`data`, the bytes of an archive's member. Raises BrokenImage if their number is wrong."""
    if len(data) != place.size:
        raise BrokenImage("cut short in the archive")
    return data


class Format(NamedTuple):
    """A kind of source: a folder or an archive.

    endings: endings of its files' names, () for folders.
    recognises(path, head): whether `path` is of this kind; head: the first 512 bytes of a file.
    places(path) -> (places, wrapped): every file in it, and whether a single top folder belongs to
    the archive and is not a class. Raises SitError if the archive is damaged.
    read(path, descriptor, place): the bytes of the file at `place`; descriptor() opens the archive
    once for all reads, which may run at the same time. Raises OSError, or BrokenImage for damage.
    piece(path, descriptor, place, start, length): as read, `length` of these bytes from `start`;
    None if a part is not read more quickly than the whole.
    """

    endings: tuple[str, ...]
    recognises: Callable[[Path, bytes], bool]
    places: Callable[[Path], tuple[Iterable[Place], bool]]
    read: Callable[[Path, Callable[[], int], Place], bytes]
    piece: Callable[[Path, Callable[[], int], Place, int, int], bytes] | None = None
