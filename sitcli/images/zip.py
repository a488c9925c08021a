"""Zip archives of images."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sitcli.errors import SitError
from sitcli.images.place import Place

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and extra field


def list_zip(path: Path) -> Iterator[Place]:
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
            member.compress_size,
            member.compress_type == zipfile.ZIP_DEFLATED,
        )
