"""Where images come from, and how they become square arrays.

A source is a folder or an archive; both are listed once, after which any image is read by its
index alone, from any process: archives are not opened as archives again, their members are byte
ranges.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from sitcli.errors import SitError
from sitcli.names import Crop

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SUFFIXES += (".ppm", ".pgm", ".pbm", ".pnm")
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and extra field


class BrokenImage(Exception):
    """One image that cannot be used; the text is the reason, without the image's name."""


class Item(NamedTuple):
    """One image of a source.

    name: its path below the source, '/' between parts; label: index of its class, 0 without
    classes; place: where its bytes are.
    """

    name: str
    label: int
    place: _Place


class _Place(NamedTuple):
    file: str  # path below the source folder, or the member's name in the archive
    size: int  # bytes, unpacked
    offset: int = 0  # archives: where the member's data (zip: its local header) begins
    packed: int = -1  # zip: bytes stored; -1 elsewhere
    deflated: bool = False  # zip


def open_source(path: Path | str) -> Source:
    """List the images of a folder per class, a flat folder, or a .tar or .zip of either.

    A tar may hold one tar per class, as ImageNet's does. Classes are numbered in sorted order of
    their folders, images sorted by name within them. Files that are no images by their suffix,
    and hidden ones, are skipped and counted.

    Raises SitError for a source that is absent, unreadable, compressed as a whole, or holds no
    images, or images both in folders and beside them.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        return _source(path, _list_folder(path), is_folder=True, wrapped=False)
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
    if head[:2] == b"PK":
        return _source(path, _list_zip(path), is_folder=False, wrapped=True)
    if head[257:262] == b"ustar" or path.suffix.lower() == ".tar":
        places, nested = _list_tar(path)
        return _source(path, places, is_folder=False, wrapped=not nested)
    raise SitError(f"{path} is neither a folder nor a .tar or .zip of images")


def prepare(image: Image.Image, size: int, crop: Crop) -> np.ndarray:
    """An RGB image as a (size, size, 3) uint8 array.

    Raises BrokenImage if crop is "none" and the image has another size.
    """
    if crop == "adm":
        return _adm_crop(image, size)
    if crop == "resize":
        return np.array(image.resize((size, size), Image.Resampling.BICUBIC))
    if image.size != (size, size):
        raise BrokenImage(f"is {image.width} x {image.height} pixels, not {size} x {size}")
    return np.array(image)


def _adm_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop (arXiv 2105.05233, its image_datasets.py), which DiT and SiT use too.

    Halving by area averages first keeps bicubic interpolation from aliasing.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    array = np.array(image.resize(scaled, Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def decode(data: bytes) -> Image.Image:
    """Any image file's bytes as 8-bit RGB, upright, transparency composited on white.

    The first frame of an animation. Raises BrokenImage.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), image.format)
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("not an image, or of an unknown format") from None
    except Exception as error:  # Pillow's readers raise whatever their format's parser does
        raise BrokenImage(" ".join(str(error).split()) or type(error).__name__) from None


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    # Pillow gives 16-bit grey as 32-bit integers for some formats and in some versions.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        # Pillow's own conversion clips at 255.
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BrokenImage(f"pixels are 32-bit ({image.mode}), their range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


class Source:
    """Listed images; `open_source` makes it. May be sent to other processes.

    path: absolute; items: list of Item; class_names: [] for a flat source; skipped: files that
    are no images; fingerprint: hex, of all names and sizes, equal for a folder and a tar of it.
    """

    def __init__(
        self, path: Path, items: list[Item], class_names: list[str], skipped: int, is_folder: bool
    ) -> None:
        self.path, self.items, self.class_names = path, items, class_names
        self.skipped = skipped
        self._is_folder = is_folder
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
        """Image `index` as upright 8-bit RGB. Raises BrokenImage."""
        return decode(self.read_bytes(index))

    def read_bytes(self, index: int) -> bytes:
        """The file of image `index`. Raises BrokenImage if it cannot be read."""
        place = self.items[index].place
        try:
            if self._is_folder:
                return (self.path / place.file).read_bytes()
            return self._read_member(place)
        except OSError as error:
            raise BrokenImage(error.strerror or str(error)) from None
        except (zlib.error, struct.error) as error:
            raise BrokenImage(f"damaged in the archive: {error}") from None

    def _read_member(self, place: _Place) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        # pread has no file position: processes forked later may share the descriptor.
        if place.packed < 0:
            data = os.pread(self._descriptor, place.size, place.offset)
        else:
            header = LOCAL_HEADER.unpack(os.pread(self._descriptor, 30, place.offset))
            data = os.pread(self._descriptor, place.packed, place.offset + 30 + sum(header))
            if place.deflated:
                data = zlib.decompress(data, wbits=-15)
        if len(data) != place.size:
            raise BrokenImage("cut short in the archive")
        return data


def _source(path: Path, places: Iterable[_Place], *, is_folder: bool, wrapped: bool) -> Source:
    """wrapped: a single top folder is the archive's own, not a class."""
    # A name that comes twice in an archive was replaced by the later one.
    found: dict[tuple[str, ...], _Place] = {}
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
    return Source(path, items, class_names, skipped, is_folder)


def _wrapping_folders(names: list[tuple[str, ...]], wrapped: bool) -> int:
    """How many leading folders all names share that are not classes."""
    first, last = min(names)[:-1], max(names)[:-1]
    shared = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    )
    shallowest = min(map(len, names))
    # Below the archive's own top folder, or in a folder, one folder of images is one class.
    return max(min(shared, shallowest - 2), min(shared, int(wrapped)), 0)


def _list_folder(path: Path, below: str = "", parents: frozenset = frozenset()) -> Iterator[_Place]:
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
                yield from _list_folder(Path(entry.path), f"{below}{entry.name}/", parents | {here})
            else:
                # A link to nowhere is listed, and found broken when it is read.
                size = entry.stat().st_size if entry.is_file() else 0
                yield _Place(below + entry.name, size)
        except OSError as error:
            raise SitError(f"cannot read {entry.path}: {error.strerror}") from None


def _list_tar(path: Path) -> tuple[list[_Place], bool]:
    """Members of the tar at `path`; and whether images lie in tars of their own inside it."""
    places: list[_Place] = []
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


def _members(file: io.BufferedReader, start: int, end: int) -> list[_Place]:
    """Regular files of the tar archive in the bytes start..end of `file`."""
    file.seek(start)
    members: dict[str, _Place] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None and member.offset < end:
            archive.members = []  # it would keep all of them, 1 KB each
            if member.islnk() and member.linkname in members:
                members[member.name] = members[member.linkname]._replace(file=member.name)
            elif member.isfile():
                members[member.name] = _Place(member.name, member.size, member.offset_data)
        # tarfile takes a bad header for the end; the true end is a block of zeros.
        file.seek(archive.offset)
        if archive.offset >= end or file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
    return list(members.values())


def _list_zip(path: Path) -> Iterator[_Place]:
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
        yield _Place(
            member.filename,
            member.file_size,
            member.header_offset,
            member.compress_size,
            member.compress_type == zipfile.ZIP_DEFLATED,
        )
