"""Labels of a source's images: by their folders, by a dataset.json, or none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from sitcli.errors import SitError, UsageError

FILE = "dataset.json"
MOST_CLASSES = 100_000  # ImageNet-21k has 21,841
FORM = '{"labels": [["00000/img00000000.png", 6], ...]}'
HINT = "repair it, or say what the labels are: --labels folders, --labels none"
# Images of ImageNet's validation set as they are shipped: flat, with the classes in another file.
VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
LAST_NUMBER = re.compile(r"(\d+)\D*$")


class Files(NamedTuple):
    """The files of a source, as a labelling looks at them.

    where: the source's path. names: those of its images, sorted, with '/' between folders. unread:
    names of pictures with endings that sit cannot read. prefix: what a file's path below `where`
    has before its name, '' or folders and '/'. sheets: by the path of its folder, prefix and all, a
    function that reads the dataset.json in it.
    """

    where: str
    names: list[str]
    unread: list[str]
    prefix: str
    sheets: dict[str, Callable[[], bytes]]


class Labelled(NamedTuple):
    """The labels of a source's images.

    labels: one for each image, 0 if there are no classes. class_names: [] if there are none.
    origin: what says so: folders, none, or the name of what holds them: dataset.json, .cls, ...
    absent: images that are labelled there and that the source lacks.
    """

    labels: list[int]
    class_names: list[str]
    origin: str
    absent: Sequence[str] = ()


def by_file_or_folders(files: Files) -> Labelled:
    """Labels by the dataset.json beside the images, else by their folders.

    Raises UsageError for a dataset.json that cannot be used or is of a part of the images, for
    folders that seem to count the images, and for ImageNet's validation set without its classes;
    SitError for images in folders and beside them.
    """
    labelled = by_second_listing(files)
    if not labelled.class_names and not files.sheets and all(map(VALIDATION.match, files.names)):
        raise UsageError(
            f"{files.where} is ImageNet's validation set as it is shipped: the images' names do "
            "not tell their classes",
            "move them into a folder per class, named as the training set's, as its ground truth "
            "says; or encode without classes: --labels none",
        )
    return labelled


def by_second_listing(files: Files) -> Labelled:
    """As version 0.8 counted the classes: by the dataset.json beside the images, else by their
    folders. It raises what `by_file_or_folders` raises, but for the validation set.
    """
    first, last = (files.prefix + name for name in (files.names[0], files.names[-1]))
    # The names are sorted: what the first and the last begin with, all begin with.
    around = [f for f in files.sheets if first.startswith(f) and last.startswith(f)]
    if around:
        return _by_file(files, max(around, key=len))
    for folder in files.sheets:
        if any((files.prefix + name).startswith(folder) for name in files.names):
            raise UsageError(
                f"{files.where}: the {FILE} in {folder} is of a part of the images",
                "encode each folder that has one by itself, or add --labels folders or "
                "--labels none",
            )
    labelled = by_folders(files)
    if are_counters(files.names, labelled.class_names):
        shown = labelled.class_names
        shown = shown if len(shown) <= 3 else [*shown[:2], "..."]
        raise UsageError(
            f"{files.where}: are the folders {', '.join(shown)} classes? They look like counters: "
            f"their images are numbered on from folder to folder, and there is no {FILE}",
            "add --labels none to encode them without classes, or --labels folders to take each "
            "folder for a class",
        )
    return labelled


def by_folders(files: Files) -> Labelled:
    """A class for each folder, also for one of whose pictures none can be read; none if all images
    lie in one flat folder.

    Raises SitError for images in folders and beside them.
    """
    return by_image_folders(files, files.unread)


def by_image_folders(files: Files, more: Sequence[str] = ()) -> Labelled:
    """A class for each folder that has images, as versions up to 0.7 counted them.

    more: names of files whose folders are classes too.
    Raises SitError for images in folders and beside them.
    """
    alone = next((name for name in files.names if "/" not in name), None)
    if alone is None:
        folders = {name.partition("/")[0] for name in files.names}
        folders |= {name.partition("/")[0] for name in more if "/" in name}
        class_names = sorted(folders)
        number = {name: i for i, name in enumerate(class_names)}
        labels = [number[name.partition("/")[0]] for name in files.names]
        return Labelled(labels, class_names, "folders")
    if any("/" in name for name in files.names):
        raise SitError(
            f"{files.where} holds images in folders and beside them ({files.prefix}{alone})",
            "give a folder per class, or one folder of images without classes",
        )
    return without_labels(files)


def without_labels(files: Files) -> Labelled:
    """No classes."""
    return Labelled([0] * len(files.names), [], "none")


def _by_file(files: Files, folder: str) -> Labelled:
    """Labels by the dataset.json in `folder`.

    A class's name is its number as text. There are as many classes as the file's highest number
    says, so that a part of the images keeps them all.
    """
    where = f"{files.where}: {folder}{FILE}"
    known = read_labels(files.sheets[folder](), where)
    if known is None:
        return without_labels(files)
    names = [(files.prefix + name)[len(folder) :] for name in files.names]
    lacking = [name for name in names if name not in known]
    if lacking:
        raise UsageError(
            f"{where} has no label for {len(lacking)} of {len(names)} images, {lacking[0]} among "
            "them",
            HINT,
        )
    class_names = [str(number) for number in range(max(known.values()) + 1)]
    labels = [known[name] for name in names]
    return Labelled(labels, class_names, FILE, sorted(known.keys() - set(names)))


# What --labels names.
LABELLINGS: dict[str, Callable[[Files], Labelled]] = {
    "auto": by_file_or_folders,
    "folders": by_folders,
    "none": without_labels,
}


def read_labels(data: bytes, where: str) -> dict[str, int] | None:
    """The labels of a dataset.json by the images' names; None if it says that there are none.

    The image sets of EDM2's and REPA's dataset_tool have such a file: labels are whole numbers from
    0, or null for a set without classes. where: the file's path, for errors.

    Raises UsageError for a file of another form and for labels that are no class numbers.
    """
    try:
        labels = json.loads(data)["labels"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{where} does not have the form {FORM}", HINT) from None
    if labels is None:
        return None
    if not isinstance(labels, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in labels
    ):
        raise UsageError(f"{where} does not have the form {FORM}", HINT)
    found: dict[str, int] = {}
    for name, label in labels:
        if wrong := wrong_label(label):
            raise UsageError(f"{where}: the label of {name} is {wrong}", HINT)
        if found.setdefault(name, label) != label:
            raise UsageError(f"{where} gives {name} two labels, {found[name]} and {label}", HINT)
    return found


def wrong_label(label: Any) -> str:
    """Why this is not a class's number, '' if it is one."""
    if isinstance(label, list):
        return f"a list of {len(label)} numbers; sit trains on class numbers, not on vectors"
    if isinstance(label, bool) or not isinstance(label, int):
        return f"{json.dumps(label)[:40]}, not the number of a class"
    if not 0 <= label < MOST_CLASSES:
        return f"{str(label)[:40]}; classes are numbered from 0 to {MOST_CLASSES - 1} at most"
    return ""


def are_counters(names: Sequence[str], class_names: Sequence[str]) -> bool:
    """Whether folders split a numbered set of images into parts of equal size.

    EDM2's tool writes 00012/img00012345.png and FFHQ has 12000/12345.png, a thousand in each. Such
    folders (1) are numbers of one width, of three digits or more, at equal distances: wider than
    the largest needs, or ten or more apart; (2) hold equally many images, the last perhaps fewer;
    (3) hold images whose numbers go on where the folder before ended. Folders 0 to 9 or 000 to 999
    fail (1), GTSRB's 00000 to 00042 fail (2) and (3).
    """
    width = len(class_names[0]) if class_names else 0
    digits = all(name.isascii() and name.isdigit() for name in class_names)
    if width < 3 or not digits or any(len(name) != width for name in class_names):
        return False
    folders = [int(name) for name in class_names]
    steps = {after - before for before, after in pairwise(folders)}
    if len(steps) > 1 or (len(str(folders[-1])) == width and max(steps, default=1) < 10):
        return False
    numbers: dict[str, list[int]] = {name: [] for name in class_names}
    for name in names:
        parts = name.split("/")
        number = LAST_NUMBER.search(parts[-1].rpartition(".")[0])
        if number is None:
            return False
        numbers[parts[0]].append(int(number[1]))
    counts = [len(inside) for inside in numbers.values()]
    if len(set(counts[:-1])) > 1 or not 0 < counts[-1] <= counts[0]:
        return False
    if len(counts) == 1:
        return _numbered_like_folder(names, class_names[0])
    return all(max(numbers[a]) < min(numbers[b]) for a, b in pairwise(class_names))


def _numbered_like_folder(names: Sequence[str], folder: str) -> bool:
    """Whether each image's number has more digits than the folder's and begins with them."""
    found = [LAST_NUMBER.search(name.rpartition(".")[0]) for name in names]
    return all(n and len(n[1]) > len(folder) and n[1].startswith(folder) for n in found)
