"""The place of one image in a source, and the interface of a format of sources."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sitcli.images.labels import Labelled
from sitcli.names import Labels


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


class Listed(NamedTuple):
    """The images of a format that keeps labels itself, in the order of its shards and their rows.

    names, places: one for each image. others: how many files of each ending are no images. unread:
    names of the pictures among them.
    """

    names: list[str]
    places: list[Place]
    labelled: Labelled
    others: Counter
    unread: Sequence[str] = ()


class Format(NamedTuple):
    """A kind of source: a folder, an archive or a set of shards.

    endings: endings of its files' names, () for folders.
    recognises(path, head): whether `path` is of this kind; head: the first 512 bytes of a file.
    read(path, opened, place): the bytes of the file at `place`; opened() is what `open` gives, once
    for all reads, which may run at the same time. Raises OSError, or BrokenImage for damage.
    places(path) -> (places, wrapped): every file in it, and whether a single top folder belongs to
    the archive and is not a class. Raises SitError if the archive is damaged.
    listed(path, labels): in place of `places`, for a format that keeps labels itself. Raises
    SitError for damage, UsageError for labels that cannot be used.
    piece(path, opened, place, start, length): as read, `length` of these bytes from `start`; None
    if a part is not read more quickly than the whole.
    sample(place): bytes that stand in for the image's where its content is compared; None if the
    image's own can be read without those of its neighbours.
    file(path, place): the file that holds the image.
    """

    endings: tuple[str, ...]
    recognises: Callable[[Path, bytes], bool]
    read: Callable[[Path, Callable[[], Any], Place], bytes]
    places: Callable[[Path], tuple[Iterable[Place], bool]] | None = None
    listed: Callable[[Path, Labels], Listed] | None = None
    piece: Callable[[Path, Callable[[], Any], Place, int, int], bytes] | None = None
    sample: Callable[[Place], bytes] | None = None
    file: Callable[[Path, Place], Path] = lambda path, place: path
    open: Callable[[Path], Any] = lambda path: os.open(path, os.O_RDONLY)
