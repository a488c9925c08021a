"""A source of images: a folder or an archive, listed in a fixed order and read by number."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sitcli.errors import SitError
from sitcli.images.decode import decode
from sitcli.images.folder import FORMAT as FOLDER
from sitcli.images.place import BrokenImage, Format, Place
from sitcli.images.tar import FORMAT as TAR
from sitcli.images.zip import FORMAT as ZIP

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SUFFIXES += (".ppm", ".pgm", ".pbm", ".pnm")
FORMATS: dict[str, Format] = {"folder": FOLDER, "zip": ZIP, "tar": TAR}
# Archives that are compressed as a whole: first bytes -> the program that unpacks them.
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
# A file with one of these endings is taken for an archive of images; those of the second line are
# refused later, with the advice to unpack them.
ARCHIVE_ENDINGS = tuple(ending for row in FORMATS.values() for ending in row.endings)
ARCHIVE_ENDINGS += (".tgz", ".gz", ".bz2", ".xz", ".zst")


class Item(NamedTuple):
    """One image of a source.

    name: its path below the source, '/' between parts; label: index of its class, 0 if there are
    no classes; place: the place of its bytes.
    """

    name: str
    label: int
    place: Place


def open_source(path: Path | str) -> Source:
    """List the images of a folder per class, a flat folder, or a .tar or .zip of either.

    A tar may hold one tar per class, as ImageNet's does. Classes are numbered in the sorted order
    of their folders, and images are sorted by name within them. Hidden files and files without an
    image's suffix are skipped and counted.

    Raises SitError for a source that is absent, unreadable or compressed as a whole, that holds no
    images, or that holds images both in folders and beside them.
    """
    path = Path(path).expanduser().absolute()
    head = b"" if path.is_dir() else _head(path)
    for row in FORMATS.values():
        if row.recognises(path, head):
            places, wrapped = row.places(path)
            return _source(path, places, row, wrapped=wrapped)
    endings = " or ".join(ending for row in FORMATS.values() for ending in row.endings)
    raise SitError(f"{path} is neither a folder nor a {endings} of images")


def _head(path: Path) -> bytes:
    """The first 512 bytes of a file.

    Raises SitError if it cannot be read or is compressed as a whole.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise SitError(
            f"{path} does not exist", "give a folder of images, a .tar or a .zip"
        ) from None
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None
    for magic, tool in COMPRESSED.items():
        if head.startswith(magic):
            raise SitError(
                f"{path} is compressed, so single images in it cannot be reached",
                f"unpack it first, with {tool} or tar xf",
            )
    return head


class Source:
    """A listed source of images, made by `open_source`. It can be sent to other processes.

    path: its absolute path; items: its images; class_names: [] for a flat source; skipped: the
    number of files that are not images; fingerprint: a hash in hex of all names and sizes, equal
    for a folder and a tar of it.
    """

    def __init__(
        self, path: Path, items: list[Item], class_names: list[str], skipped: int, row: Format
    ) -> None:
        self.path, self.items, self.class_names = path, items, class_names
        self.skipped = skipped
        self._format = next(name for name, other in FORMATS.items() if other is row)
        self._descriptor: int | None = None
        digest = hashlib.sha256()
        for item in items:
            digest.update(f"{item.name}\0{item.place.size}\n".encode("utf-8", "surrogateescape"))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_descriptor": None}

    def read(self, index: int) -> Image.Image:
        """Image `index` as upright 8-bit RGB. Raises BrokenImage if it cannot be decoded."""
        return decode(self.read_bytes(index))

    def read_bytes(self, index: int) -> bytes:
        """The bytes of the file of image `index`. Raises BrokenImage if they cannot be read."""
        place = self.items[index].place
        try:
            return FORMATS[self._format].read(self.path, self._open, place)
        except OSError as error:
            raise BrokenImage(error.strerror or str(error)) from None

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        return self._descriptor


def _source(path: Path, places: Iterable[Place], row: Format, *, wrapped: bool) -> Source:
    """The source with these files; wrapped: a single top folder is the archive's, not a class."""
    # Where a name occurs twice in an archive, the later member counts.
    found: dict[tuple[str, ...], Place] = {}
    skipped = 0
    for place in places:
        parts = tuple(part for part in place.file.split("/") if part not in ("", "."))
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if hidden or os.path.splitext(place.file)[1].lower() not in SUFFIXES:
            skipped += 1
        else:
            found[parts] = place
    if not found:
        raise SitError(
            f"{path} holds no images" + (f", only {skipped} other files" if skipped else ""),
            f"images are files ending in {', '.join(SUFFIXES)}",
        )
    cut = _wrapping_folders(list(found), wrapped)
    inside = [len(parts) - cut > 1 for parts in found]
    if any(inside) and not all(inside):
        alone = next(parts for parts, deep in zip(found, inside, strict=True) if not deep)
        raise SitError(
            f"{path} holds images in folders and beside them ({'/'.join(alone)})",
            "give a folder per class, or one folder of images without classes",
        )
    class_names = sorted({parts[cut] for parts in found}) if inside[0] else []
    numbers = {name: number for number, name in enumerate(class_names)}
    items = [
        Item("/".join(parts[cut:]), numbers.get(parts[cut], 0), found[parts])
        for parts in sorted(found)
    ]
    return Source(path, items, class_names, skipped, row)


def _wrapping_folders(names: list[tuple[str, ...]], wrapped: bool) -> int:
    """The number of leading folders that all names share and that are not classes."""
    first, last = min(names)[:-1], max(names)[:-1]
    shared = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    )
    shallowest = min(map(len, names))
    # A single folder of images is one class, in a folder or below the archive's own top folder.
    return max(min(shared, shallowest - 2), min(shared, int(wrapped)), 0)
