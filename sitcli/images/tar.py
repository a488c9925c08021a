"""Tar archives of images, and tars of tars."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from sitcli.errors import SitError
from sitcli.images.place import Format, Place, whole


def list_tar(path: Path) -> tuple[list[Place], bool]:
    """The members of the tar at `path`, and whether there are tars inside it.

    Members of an inner tar are listed below a folder with its name.
    Raises SitError if the tar is damaged or cannot be read.
    """
    places: list[Place] = []
    nested = False
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            for place in _members(file, 0, size):
                stem, suffix = os.path.splitext(place.file)
                if suffix.lower() != ".tar":
                    places.append(place)
                    continue
                nested = True
                end = place.offset + place.size
                inner = _members(file, place.offset, end)
                places += [part._replace(file=f"{stem}/{part.file}") for part in inner]
    except (tarfile.TarError, EOFError) as error:
        raise SitError(f"{path} is damaged or cut short: {error}", "copy it again") from None
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None
    return places, nested


def _members(file: io.BufferedReader, start: int, end: int) -> list[Place]:
    """The regular files of the tar archive in the bytes start..end of `file`."""
    file.seek(start)
    members: dict[str, Place] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None and member.offset < end:
            archive.members = []  # else tarfile keeps every member, 1 KB each
            if member.islnk() and member.linkname in members:
                members[member.name] = members[member.linkname]._replace(file=member.name)
            elif member.isfile():
                members[member.name] = Place(member.name, member.size, member.offset_data)
        # tarfile stops at a bad header as if it were the end; the true end is a block of zeros.
        file.seek(archive.offset)
        if archive.offset >= end or file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
    return list(members.values())


def _places(path: Path) -> tuple[list[Place], bool]:
    places, nested = list_tar(path)
    return places, not nested


FORMAT = Format(
    endings=(".tar",),
    recognises=lambda path, head: head[257:262] == b"ustar" or path.suffix.lower() == ".tar",
    places=_places,
    # pread uses no file position, so processes forked later can share the descriptor.
    read=lambda path, descriptor, place: whole(
        os.pread(descriptor(), place.size, place.offset), place
    ),
    piece=lambda path, descriptor, place, start, length: os.pread(
        descriptor(), length, place.offset + start
    ),
)
