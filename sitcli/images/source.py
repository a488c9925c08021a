"""A source of images: a folder or an archive, listed in a fixed order and read by number."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sitcli.errors import SitError
from sitcli.images.decode import decode
from sitcli.images.endings import (
    ENDINGS,
    FIRST_ENDINGS,
    UNREAD_ENDINGS,
    check_readable,
    ending_of,
)
from sitcli.images.folder import FORMAT as FOLDER
from sitcli.images.labels import FILE as LABELS_FILE
from sitcli.images.labels import (
    LABELLINGS,
    Files,
    Labelled,
    by_file_or_folders,
    by_image_folders,
    by_second_listing,
)
from sitcli.images.parquet import FORMAT as PARQUET
from sitcli.images.place import BrokenImage, Format, Listed, Place
from sitcli.images.shards import is_pattern
from sitcli.images.tar import FORMAT as TAR
from sitcli.images.webdataset import FORMAT as WEBDATASET
from sitcli.images.zip import FORMAT as ZIP
from sitcli.names import Labels

# How a source is listed. Versions up to 0.7 list it the first way: fewer endings, a class for each
# folder that has images, no dataset.json. Version 0.8 lists it the second way: a WebDataset shard
# is a tar of images without classes. A store keeps the number, and goes on in its way.
FIRST_LISTING, SECOND_LISTING, LISTING = 1, 2, 3
# Files compared by content, spread evenly over all, and bytes read at three places of each.
COMPARED, PIECE = 2048, 16384
# The first that recognises a path reads it: those that keep labels come before what they lie in.
FORMATS: dict[str, Format] = {
    "parquet": PARQUET,
    "webdataset": WEBDATASET,
    "folder": FOLDER,
    "zip": ZIP,
    "tar": TAR,
}
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


def open_source(path: Path | str, *, labels: Labels = "auto", listing: int = LISTING) -> Source:
    """List the images of a folder per class, a flat folder, a .tar or .zip of either, or shards of
    WebDataset or parquet: a file, a folder or a pattern of them.

    A tar may hold one tar per class, as ImageNet's does. Images are sorted by name, those of shards
    in the shards' order. Hidden files and files without an image's ending are skipped and counted.

    labels: a row of `LABELLINGS`. With "folders" classes are numbered in the sorted order of their
    folders; a folder whose pictures all have endings that sit cannot read is a class too. listing:
    LISTING, or the number that an older store keeps.

    Raises SitError for a source that is absent, unreadable or compressed as a whole, that holds no
    images, images that this Pillow cannot read, or images both in folders and beside them;
    UsageError for labels that cannot be used, and for folders that may be no classes.
    """
    path = Path(path).expanduser().absolute()
    head = b"" if path.is_dir() or is_pattern(path) else _head(path)
    for row in FORMATS.values():
        if (row.listed and listing < LISTING) or not row.recognises(path, head):
            continue
        if row.listed:
            return _sharded(path, row.listed(path, labels), row)
        places, wrapped = row.places(path)
        if listing == FIRST_LISTING:
            return _source(path, places, row, wrapped, FIRST_ENDINGS, by_image_folders)
        labelling = LABELLINGS[labels]
        if listing == SECOND_LISTING and labelling is by_file_or_folders:
            labelling = by_second_listing
        return _source(path, places, row, wrapped, ENDINGS, labelling)
    endings = sorted({ending for row in FORMATS.values() for ending in row.endings})
    endings = f"{', '.join(endings[:-1])} or {endings[-1]}"
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
            f"{path} does not exist", "give a folder of images, a .tar, a .zip or a .parquet"
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

    path: its absolute path; items: its images; labelled: their labels, and where those are from.
    others: how many files of each ending are no images, hidden ones under "hidden"; unread: names
    of the pictures among them, with endings that sit cannot read. fingerprint: a hash in hex of all
    names and sizes, equal for a folder and a tar of it.
    """

    def __init__(
        self,
        path: Path,
        items: list[Item],
        labelled: Labelled,
        row: Format,
        *,
        others: Counter,
        unread: list[str],
    ) -> None:
        self.path, self.items, self.labelled = path, items, labelled
        self.others, self.unread = others, unread
        self._format = next(name for name, other in FORMATS.items() if other is row)
        self._opened: Any = None
        digest = hashlib.sha256()
        for item in items:
            digest.update(f"{item.name}\0{item.place.size}\n".encode("utf-8", "surrogateescape"))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, [] for a source without classes."""
        return self.labelled.class_names

    @property
    def skipped(self) -> int:
        """The number of files that are no images."""
        return self.others.total()

    @cached_property
    def content(self) -> str:
        """A hash in hex of the labels, the classes and a part of the files' bytes.

        Up to COMPARED files are read, spread evenly over all: those of at most three PIECEs whole,
        of the others a PIECE at the beginning, the middle and the end. It is the same for a folder
        and archives of it.
        """
        digest = hashlib.sha256(np.array(self.labelled.labels, "<i8").tobytes())
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        count = min(COMPARED, len(self))
        chosen = np.linspace(0, len(self) - 1, count).astype(int).tolist()
        self._open()  # once, before the threads
        # They mostly wait for a disk, often one behind a network.
        with ThreadPoolExecutor(16) as pool:
            for part in pool.map(self._digest_of, chosen):
                digest.update(part)
        return digest.hexdigest()

    @cached_property
    def members(self) -> str | None:
        """A hash in hex of the checksums that a zip lists of all its files; None for others."""
        sums = [item.place.crc for item in self.items]
        if None in sums:
            return None
        return hashlib.sha256(np.array(sums, "<u4").tobytes()).hexdigest()

    def _digest_of(self, index: int) -> bytes:
        """A hash of the bytes of image `index` that `content` looks at."""
        place, row = self.items[index].place, FORMATS[self._format]
        last = place.size - PIECE
        starts = (0, last // 2, last)
        try:
            if row.sample:
                data = row.sample(place)
            elif last <= 2 * PIECE:
                data = row.read(self.path, self._open, place)
            elif row.piece is None:
                whole = row.read(self.path, self._open, place)
                data = b"".join(whole[start : start + PIECE] for start in starts)
            else:
                parts = (row.piece(self.path, self._open, place, start, PIECE) for start in starts)
                data = b"".join(parts)
        except (OSError, BrokenImage):
            data = b"unreadable"
        return hashlib.sha256(data).digest()

    def arranged(self, names: Sequence[str], class_names: Sequence[str]) -> Source | None:
        """The source with the images `names` first, in this order, and with the classes numbered as
        in `class_names`, new ones after them. None if it lacks one of the images or classes.
        """
        own = [item.name for item in self.items]
        if own == list(names) and self.class_names == list(class_names):
            return self
        known, number = set(names), {name: i for i, name in enumerate(own)}
        lacking = known - number.keys() or set(class_names) - set(self.class_names)
        if lacking or (self.class_names and not class_names):
            return None
        order = [number[name] for name in names]
        order += [i for i, name in enumerate(own) if name not in known]
        classes = list(dict.fromkeys([*class_names, *self.class_names]))
        label = {name: i for i, name in enumerate(classes)}
        renumbered = [label[name] for name in self.class_names] or [0]
        return self._of(
            [self.items[i]._replace(label=renumbered[self.items[i].label]) for i in order], classes
        )

    def beginning(self, num: int, num_classes: int) -> Source:
        """The source's first `num` images, with its first classes."""
        return self._of(self.items[:num], self.class_names[:num_classes])

    def _of(self, items: list[Item], class_names: list[str]) -> Source:
        labels = [item.label for item in items]
        labelled = self.labelled._replace(labels=labels, class_names=class_names)
        row = FORMATS[self._format]
        return Source(self.path, items, labelled, row, others=self.others, unread=self.unread)

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

    def files(self) -> Iterator[Path]:
        """The files that hold the images, each once: the images' own, the archive or the shards."""
        row = FORMATS[self._format]
        return iter(dict.fromkeys(row.file(self.path, item.place) for item in self.items))

    def _open(self) -> Any:
        if self._opened is None:
            self._opened = FORMATS[self._format].open(self.path)
        return self._opened


def _sharded(path: Path, listed: Listed, row: Format) -> Source:
    """The source of a format that keeps labels itself."""
    rows = zip(listed.names, listed.labelled.labels, listed.places, strict=True)
    items = [Item(*values) for values in rows]
    if not items:
        raise _no_images(path, listed.others)
    check_readable({ending_of(item.name) for item in items} & ENDINGS)
    unread = sorted(listed.unread)
    return Source(path, items, listed.labelled, row, others=listed.others, unread=unread)


def _source(
    path: Path,
    places: Iterable[Place],
    row: Format,
    wrapped: bool,
    endings: frozenset[str],
    labelling: Callable[[Files], Labelled],
) -> Source:
    """The source with these files; wrapped: a single top folder is the archive's, not a class.

    endings: those of images; labelling: a row of `LABELLINGS`.
    """
    # Where a name occurs twice in an archive, the later member counts.
    found: dict[tuple[str, ...], Place] = {}
    unread: list[tuple[str, ...]] = []
    sheets: dict[str, Callable[[], bytes]] = {}
    others: Counter = Counter()
    for place in places:
        parts = tuple(part for part in place.file.split("/") if part not in ("", "."))
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        ending = "hidden" if hidden else ending_of(place.file)
        if ending in endings:
            found[parts] = place
            continue
        others[ending] += 1
        if ending in UNREAD_ENDINGS:
            unread.append(parts)
        elif not hidden and parts[-1:] == (LABELS_FILE,):
            sheets["".join(f"{part}/" for part in parts[:-1])] = partial(_read, path, row, place)
    if not found:
        raise _no_images(path, others)
    check_readable({ending_of(parts[-1]) for parts in found})
    order = sorted(found)
    cut = _wrapping_folders(order, wrapped)
    names = ["/".join(parts[cut:]) for parts in order]
    top = order[0][:cut]
    beside = sorted("/".join(parts[cut:]) for parts in unread if parts[:cut] == top)
    elsewhere = sorted("/".join(parts) for parts in unread if parts[:cut] != top)
    labelled = labelling(
        Files(str(path), names, beside, "".join(f"{part}/" for part in top), sheets)
    )
    if labelled.origin == LABELS_FILE:
        others -= Counter([ending_of(LABELS_FILE)])  # one was read
    items = [
        Item(name, label, found[parts])
        for name, label, parts in zip(names, labelled.labels, order, strict=True)
    ]
    return Source(path, items, labelled, row, others=others, unread=beside + elsewhere)


def _read(path: Path, row: Format, place: Place) -> bytes:
    """The bytes of a file that is no image. Raises SitError if they cannot be read."""
    with contextlib.ExitStack() as opened:

        def descriptor() -> int:
            return opened.enter_context(open(path, "rb")).fileno()

        try:
            return row.read(path, descriptor, place)
        except (OSError, BrokenImage) as error:
            raise SitError(f"cannot read {place.file} of {path}: {error}") from None


def _latents_command(path: Path) -> str:
    return f"sit import-latents {shlex.quote(str(path))} OUT.h5"


def _no_images(path: Path, others: Counter) -> SitError:
    if others[".npy"]:
        return SitError(
            f"{path} holds {others['.npy']} .npy arrays and no images: latents or features, as the "
            "tools of EDM2, REPA and fast-DiT write them",
            f"give the images they were made from, or take the latents: {_latents_command(path)}",
        )
    if others[".safetensors"]:
        return SitError(
            f"{path} holds {others['.safetensors']} .safetensors files and no images: latents, as "
            "LightningDiT's tools write them",
            _latents_command(path),
        )
    for ending in (".parquet", ".tar"):
        if others[ending]:
            return SitError(
                f"{path} holds no images beside its {others[ending]} {ending} files",
                f"give one of these, the folder they lie in, or a pattern: 'FOLDER/*{ending}'",
            )
    only = f", only {others.total()} other files" if others else ""
    return SitError(
        f"{path} holds no images{only}", f"images are files ending in {', '.join(sorted(ENDINGS))}"
    )


def _wrapping_folders(names: list[tuple[str, ...]], wrapped: bool) -> int:
    """The number of leading folders that all names share and that are not classes."""
    first, last = min(names)[:-1], max(names)[:-1]
    shared = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    )
    shallowest = min(map(len, names))
    # A single folder of images is one class, in a folder or below the archive's own top folder.
    return max(min(shared, shallowest - 2), min(shared, int(wrapped)), 0)
