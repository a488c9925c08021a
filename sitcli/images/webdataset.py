"""WebDataset: tars of samples, members that share a name up to its first dot, and their labels.

The format is that of https://github.com/webdataset/webdataset: `000012.jpg`, `000012.cls` (a number
as text) and `000012.json` are one sample.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sitcli.errors import SitError, UsageError
from sitcli.images.endings import ENDINGS, UNREAD_ENDINGS, ending_of
from sitcli.images.labels import HINT, Files, Labelled, by_image_folders, without_labels
from sitcli.images.place import BrokenImage, Format, Listed, Place, whole
from sitcli.images.shards import by_number, check_label, holds_shards, shard_name, shards_at
from sitcli.images.tar import list_tar
from sitcli.names import Labels

PEEKED = 64  # members of a tar that tell whether it is a shard: those of a sample are neighbours
UNREAD_LABELS = ("folders", "none")  # the values of --labels that need none of these files
LABEL_FILES = ("cls", "class", "label")
USED = frozenset((*LABEL_FILES, "json"))
# Fields of a .json, as timm's and img2dataset's shards and others have them.
LABEL_FIELDS = ("label", "cls", "class", "class_id", "class_idx", "class_index", "target")
NAME_FIELDS = ("class_name", "classname", "label_name", "class_label", "label_text")
WHOLE_NUMBER = re.compile(rb"[+-]?\d+")
LARGEST = 1 << 24  # bytes of a label's file


class _Sample(NamedTuple):
    """One sample that has an image. key: its shard and its name; image: the image's place; others:
    its other members by ending.
    """

    key: str
    image: Place
    others: dict[str, Place]


def _recognises(path: Path, head: bytes) -> bool:
    if path.is_file():
        return (head[257:262] == b"ustar" or path.suffix.lower() == ".tar") and is_shard(path)
    return holds_shards(path, ".tar")


def is_shard(path: Path) -> bool:
    """Whether the file is a tar, one of whose first images has a label's file beside it."""
    found: dict[str, set[str]] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in islice(archive, PEEKED):
                key, ending = _split(member.name)
                found.setdefault(key, set()).add(ending)
    except (tarfile.TarError, EOFError, OSError):
        return False  # the error is that of a tar
    labels = {*LABEL_FILES, "json"}
    return any(
        endings & labels and any(_is_image(ending) for ending in endings)
        for endings in found.values()
    )


def _split(name: str) -> tuple[str, str]:
    """(key, ending in lower case) of a member's name, at the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, ending.lower()


@functools.cache
def _is_image(ending: str) -> bool:
    return ending_of(f"x.{ending}") in ENDINGS


def _listed(path: Path, labels: Labels) -> Listed:
    shards, folder = shards_at(path, ".tar")
    images: list[Place] = []
    others: Counter = Counter()
    unread: list[str] = []
    found = None if labels in UNREAD_LABELS else _Labels()
    for shard in shards:
        _check_tar(shard)
        name = shard_name(shard, folder)
        for sample in _samples(shard, name, others, unread, found):
            images.append(sample.image)
            if found is not None:
                found.add(sample)
    names = [image.file for image in images]
    if found is not None and names:
        labelled = found.labelled(folder)
    elif labels == "folders" and names:
        labelled = _by_folders(path, images)
    else:
        labelled = without_labels(Files(str(path), names, [], "", {}))
    return Listed(names, images, labelled, others, unread)


def _check_tar(shard: Path) -> None:
    try:
        with open(shard, "rb") as file:
            head = file.read(2)
    except OSError as error:
        raise SitError(f"cannot read {shard}: {error.strerror}") from None
    if head == b"\x1f\x8b":
        raise SitError(
            f"{shard} is compressed, so single images in it cannot be reached",
            "unpack it first, with gunzip",
        )


def _samples(
    shard: Path, name: str, others: Counter, unread: list[str], found: _Labels | None
) -> Iterator[_Sample]:
    """The samples of a shard that have an image; others, unread: see Listed, they are added to.

    found: gets the keys of samples that have a label alone; None if labels are not read.
    """
    samples: dict[str, dict[str, Place]] = {}
    more = (str(shard),)  # one for all of them
    for place in list_tar(shard)[0]:
        parts = tuple(part for part in place.file.split("/") if part not in ("", "."))
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            others["hidden"] += 1
            continue
        key, ending = _split("/".join((name, *parts)))
        samples.setdefault(key, {})[ending] = place._replace(
            file="/".join((name, *parts)), more=more
        )
    for key, members in samples.items():
        image = _image_of(members, key)
        rest = {e: p for e, p in members.items() if not _is_image(e)}
        used = USED if found is not None and image else frozenset()
        others.update(f".{ending}" for ending in rest.keys() - used)
        if image is not None:
            yield _Sample(key, image, rest)
            continue
        unread += [p.file for e, p in rest.items() if ending_of(f"x.{e}") in UNREAD_ENDINGS]
        if found is not None and rest.keys() & set(LABEL_FILES):
            found.absent.append(key)


def _image_of(members: dict[str, Place], where: str) -> Place | None:
    """The sample's image: the one named by a single ending, else the only one.

    Raises UsageError if that does not tell which.
    """
    images = {ending: place for ending, place in members.items() if _is_image(ending)}
    chosen = {e: place for e, place in images.items() if "." not in e} or images
    if len(chosen) > 1:
        raise UsageError(
            f"{where} has {len(chosen)} images: .{', .'.join(chosen)}",
            "repack the shards with one image a sample",
        )
    return next(iter(chosen.values()), None)


def _by_folders(path: Path, images: list[Place]) -> Labelled:
    """A class for each folder inside the shards if images lie in some, else for each shard."""
    # The shard's name is the beginning of an image's name.
    shards = [os.path.basename(place.more[0]) for place in images]
    inside = [
        place.file.partition(f"{shard}/")[2] for place, shard in zip(images, shards, strict=True)
    ]
    if not any("/" in file for file in inside) and len(set(shards)) > 1:
        inside = [f"{os.path.splitext(shard)[0]}/x" for shard in shards]
    return by_image_folders(Files(str(path), inside, [], "", {}))


class _Labels:
    """Labels by the samples' .cls or .json, and names of classes by fields of the .json."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.numbers: list[int] = []
        self.absent: list[str] = []
        self.origins: set[str] = set()
        self.names: dict[int, tuple[str, str]] = {}
        self.seen: set[tuple[str, int]] = set()

    def add(self, sample: _Sample) -> None:
        """Read a sample's label. Raises UsageError if it has none, or one that is no number."""
        label, origin, fields = _label_of(sample)
        self.keys.append(sample.key)
        self.numbers.append(label)
        self.origins.add(origin)
        # One sample of each class and shard tells its name.
        mark = sample.image.more[0], label
        if mark not in self.seen:
            self.seen.add(mark)
            self._note_name(label, fields() or {}, sample.key)

    def _note_name(self, label: int, fields: dict, key: str) -> None:
        name = next((fields[f] for f in NAME_FIELDS if isinstance(fields.get(f), str)), None)
        if name is None:
            return
        before, first = self.names.setdefault(label, (name, key))
        if before != name:
            raise UsageError(
                f"{key}: class {label} is called {name}, and {before} in {first}", HINT
            )

    def labelled(self, folder: Path) -> Labelled:
        """The labels of all samples, in the order in which they were added."""
        known = {label: name for label, (name, _) in self.names.items()}
        origin = " and ".join(sorted(self.origins))
        labelled = by_number(self.numbers, known, folder, self.keys, origin)
        return labelled._replace(absent=self.absent)


def _label_of(sample: _Sample) -> tuple[int, str, Callable[[], dict | None]]:
    """(label, the ending of its file, a function that gives the fields of the .json)."""
    key = sample.key

    def fields() -> dict | None:
        place = sample.others.get("json")
        return None if place is None else _json(place, key)

    ending = next((e for e in LABEL_FILES if e in sample.others), None)
    if ending is not None:
        text = _read_member(sample.others[ending], key).strip()
        if not WHOLE_NUMBER.fullmatch(text):
            check_label(text[:40].decode("utf-8", "replace"), f"{key}.{ending}")
        return check_label(int(text[:40]), f"{key}.{ending}"), f".{ending}", fields
    found = fields()
    field = next((f for f in LABEL_FIELDS if f in (found or {})), None)
    if field is None:
        lacking = (
            f"neither a .{LABEL_FILES[0]} nor a .json"
            if found is None
            else f"no .{LABEL_FILES[0]}, and its .json has none of {', '.join(LABEL_FIELDS[:4])}"
        )
        raise UsageError(
            f"{key} has no label: it has {lacking}",
            "say what the labels are: --labels none; --labels folders takes each folder in the "
            "shards, or each shard, for a class",
        )
    return check_label(found[field], f"{key}.json"), ".json", lambda: found


def _json(place: Place, key: str) -> dict:
    try:
        found = json.loads(_read_member(place, key))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{key}.json is not a JSON object", HINT)
    return found


def _read_member(place: Place, key: str) -> bytes:
    if place.size > LARGEST:
        raise UsageError(f"{key}: a label's file of {place.size} bytes", HINT)
    try:
        return _read(Path(place.more[0]), lambda: None, place)
    except (OSError, BrokenImage) as error:
        raise SitError(f"cannot read {place.file}: {error}", "copy it again") from None


def _piece(path: Path, opened: Callable, place: Place, start: int, length: int) -> bytes:
    # A shard is opened for each image: thousands of them may not all stay open.
    descriptor = os.open(place.more[0], os.O_RDONLY)
    try:
        return os.pread(descriptor, length, place.offset + start)
    finally:
        os.close(descriptor)


def _read(path: Path, opened: Callable, place: Place) -> bytes:
    return whole(_piece(path, opened, place, 0, place.size), place)


FORMAT = Format(
    endings=(".tar",),
    recognises=_recognises,
    listed=_listed,
    read=_read,
    piece=_piece,
    file=lambda path, place: Path(place.more[0]),
    open=lambda path: path,
)
