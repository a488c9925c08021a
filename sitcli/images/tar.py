"""Tar archives of images, and tars of tars."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from sitcli.errors import SitError
from sitcli.images.place import Format, Place, whole


def list_tar(path: Path) -> tuple[list[Place], bool]:
    """Members of the tar at `path`; and whether images lie in tars of their own inside it."""
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
    """Regular files of the tar archive in the bytes start..end of `file`."""
    file.seek(start)
    members: dict[str, Place] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None and member.offset < end:
            archive.members = []  # it would keep all of them, 1 KB each
            if member.islnk() and member.linkname in members:
                members[member.name] = members[member.linkname]._replace(file=member.name)
            elif member.isfile():
                members[member.name] = Place(member.name, member.size, member.offset_data)
        # tarfile takes a bad header for the end; the true end is a block of zeros.
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
    # pread has no file position: processes forked later may share the descriptor.
    read=lambda path, descriptor, place: whole(
        os.pread(descriptor(), place.size, place.offset), place
    ),
)
