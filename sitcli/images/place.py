"""Where one image of a source lies, and what a format of sources must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple


class BrokenImage(Exception):
    """One image that cannot be used; the text is the reason, without the image's name."""


class Place(NamedTuple):
    """file: path below the source folder, or the member's name in the archive; size: bytes,
    unpacked; offset: where in an archive the member begins; more: what else its format needs."""

    file: str
    size: int
    offset: int = 0
    more: tuple[Any, ...] = ()


def whole(data: bytes, place: Place) -> bytes:
    """The bytes of an archive's member. BrokenImage if there are fewer than the archive says."""
    if len(data) != place.size:
        raise BrokenImage("cut short in the archive")
    return data


class Format(NamedTuple):
    """A way in which images lie together.

    endings: of the names of such files, () for folders.
    recognises(path, head): whether it is one, head being the first 512 bytes of a file.
    places(path) -> (places, wrapped): every file in it, and whether a single top folder is the
    archive's own, not a class. Raises SitError for one that is damaged.
    read(path, descriptor, place): the bytes of the file at `place`; descriptor() opens the archive
    once for all reads, which may be at the same time. Raises OSError, or BrokenImage for damage.
    """

    endings: tuple[str, ...]
    recognises: Callable[[Path, bytes], bool]
    places: Callable[[Path], tuple[Iterable[Place], bool]]
    read: Callable[[Path, Callable[[], int], Place], bytes]
