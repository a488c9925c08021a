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
from collections.abc import Callable
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
LABEL_FILES = ("cls", "class", "label")
USED = frozenset((*LABEL_FILES, "json"))
# Fields of a .json, as timm's and img2dataset's shards and others have them.
LABEL_FIELDS = ("label", "cls", "class", "class_id", "class_idx", "class_index", "target")
NAME_FIELDS = ("class_name", "classname", "label_name", "class_label", "label_text")
WHOLE_NUMBER = re.compile(rb"[+-]?\d+")
LARGEST = 1 << 24  # bytes of a label's file


class _Sample(NamedTuple):
    """One sample. name: its image's, below its shard's; image: None if it has none; others: its
    other members by ending.
    """

    shard: str
    name: str
    image: Place | None
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
    samples: dict[str, _Sample] = {}
    others: Counter = Counter()
    unread: list[str] = []
    for shard in shards:
        _check_tar(shard)
        name, path_of_shard = shard_name(shard, folder), str(shard)
        for key, members in _samples(shard, others).items():
            image = _image_of(members, f"{name}/{key}")
            if image is None:
                unread += [f"{name}/{p.file}" for e, p in members.items()
                           if ending_of(f"x.{e}") in UNREAD_ENDINGS]  # fmt: skip
            else:
                image = image._replace(more=(path_of_shard,))
                members = {e: p for e, p in members.items() if not _is_image(e)}
            used = USED if labels == "auto" and image else frozenset()
            others.update(f".{ending}" for ending in members.keys() - used)
            file = f"{name}/{image.file}" if image else ""
            samples[f"{name}/{key}"] = _Sample(path_of_shard, file, image, members)
    return _labelled(path, folder, samples, labels, others, unread)


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


def _samples(shard: Path, others: Counter) -> dict[str, dict[str, Place]]:
    """The members of each sample by their endings; others: counts hidden files."""
    found: dict[str, dict[str, Place]] = {}
    for place in list_tar(shard)[0]:
        parts = tuple(part for part in place.file.split("/") if part not in ("", "."))
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            others["hidden"] += 1
            continue
        file = "/".join(parts)
        key, ending = _split(file)
        found.setdefault(key, {})[ending] = place._replace(file=file)
    return found


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


def _labelled(
    path: Path,
    folder: Path,
    samples: dict[str, _Sample],
    labels: Labels,
    others: Counter,
    unread: list[str],
) -> Listed:
    whole_samples = {key: s for key, s in samples.items() if s.image is not None}
    images = [s.image for s in whole_samples.values()]
    names = [s.name for s in whole_samples.values()]
    if not names or labels == "none":
        labelled = Labelled([0] * len(names), [], "none")
    elif labels == "folders":
        labelled = _by_folders(path, names, images)
    else:
        labelled = _by_members(folder, whole_samples)
        absent = [
            key for key, s in samples.items()
            if s.image is None and s.others.keys() & set(LABEL_FILES)
        ]  # fmt: skip
        labelled = labelled._replace(absent=absent)
    return Listed(names, images, labelled, others, unread)


def _by_folders(path: Path, names: list[str], images: list[Place]) -> Labelled:
    """A class for each folder inside the shards if images lie in some, else for each shard."""
    inside = [place.file for place in images]
    if not any("/" in file for file in inside):
        inside = [f"{Path(name.rpartition('/')[0]).with_suffix('')}/x" for name in names]
        if len(set(inside)) == 1:
            return without_labels(Files(str(path), names, [], "", {}))
    return by_image_folders(Files(str(path), inside, [], "", {}))


def _by_members(folder: Path, samples: dict[str, _Sample]) -> Labelled:
    """Labels by the samples' .cls or .json, and names of classes by fields of the .json.

    Raises UsageError for a sample without a label or with one that is no class's number.
    """
    labels, origins = [], set()
    class_names: dict[int, tuple[str, str]] = {}
    seen: set[tuple[str, int]] = set()
    for key, sample in samples.items():
        label, origin, fields = _label_of(key, sample)
        labels.append(label)
        origins.add(origin)
        # One sample of each class and shard tells its name.
        if (sample.shard, label) not in seen:
            seen.add((sample.shard, label))
            _note_name(class_names, label, fields() or {}, key)
    known = {label: name for label, (name, _) in class_names.items()}
    return by_number(labels, known, folder, list(samples), " and ".join(sorted(origins)))


def _note_name(class_names: dict[int, tuple[str, str]], label: int, fields: dict, key: str) -> None:
    name = next((fields[f] for f in NAME_FIELDS if isinstance(fields.get(f), str)), None)
    if name is None:
        return
    before, first = class_names.setdefault(label, (name, key))
    if before != name:
        raise UsageError(f"{key}: class {label} is called {name}, and {before} in {first}", HINT)


def _label_of(key: str, sample: _Sample) -> tuple[int, str, Callable[[], dict | None]]:
    """(label, the ending of its file, a function that gives the fields of the .json)."""

    def fields() -> dict | None:
        place = sample.others.get("json")
        return None if place is None else _json(sample, place, key)

    ending = next((e for e in LABEL_FILES if e in sample.others), None)
    if ending is not None:
        text = _read_member(sample.shard, sample.others[ending], key).strip()
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


def _json(sample: _Sample, place: Place, key: str) -> dict:
    try:
        found = json.loads(_read_member(sample.shard, place, key))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{key}.json is not a JSON object", HINT)
    return found


def _read_member(shard: str, place: Place, key: str) -> bytes:
    if place.size > LARGEST:
        raise UsageError(f"{key}: a label's file of {place.size} bytes", HINT)
    try:
        return _read(Path(shard), lambda: None, place._replace(more=(shard,)))
    except (OSError, BrokenImage) as error:
        raise SitError(f"cannot read {key} of {shard}: {error}", "copy it again") from None


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
