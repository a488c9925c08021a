"""Zip archives of images."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sitcli.errors import SitError
from sitcli.images.place import BrokenImage, Format, Place, whole

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and extra field


def list_zip(path: Path) -> Iterator[Place]:
    """The members of the zip at `path`; a place's `more` is (bytes stored, whether deflated).

    Raises SitError if the zip is damaged, encrypted or uses an uncommon compression.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise SitError(f"{path} is damaged or cut short: {error}", "copy it again") from None
    for member in members:
        if member.is_dir():
            continue
        if member.flag_bits & 1:
            raise SitError(f"{path} is encrypted", "unpack it first")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SitError(f"{path} uses an uncommon compression ({member.filename})", "unpack it")
        yield Place(
            member.filename,
            member.file_size,
            member.header_offset,
            (member.compress_size, member.compress_type == zipfile.ZIP_DEFLATED),
            member.CRC,
        )


def _read(path: Path, descriptor: Callable[[], int], place: Place) -> bytes:
    packed, deflated = place.more
    try:
        data = os.pread(descriptor(), packed, _begin(descriptor, place))
        return whole(zlib.decompress(data, wbits=-15) if deflated else data, place)
    except zlib.error as error:
        raise BrokenImage(f"damaged in the archive: {error}") from None


def _begin(descriptor: Callable[[], int], place: Place) -> int:
    """The byte of the archive at which the member's data begin."""
    try:
        header = LOCAL_HEADER.unpack(os.pread(descriptor(), 30, place.offset))
    except struct.error as error:
        raise BrokenImage(f"damaged in the archive: {error}") from None
    return place.offset + 30 + sum(header)


def _piece(
    path: Path, descriptor: Callable[[], int], place: Place, start: int, length: int
) -> bytes:
    _, deflated = place.more
    if deflated:
        return _read(path, descriptor, place)[start : start + length]
    return os.pread(descriptor(), length, _begin(descriptor, place) + start)


FORMAT = Format(
    endings=(".zip",),
    recognises=lambda path, head: head[:2] == b"PK",
    places=lambda path: (list_zip(path), True),
    read=_read,
    piece=_piece,
)
