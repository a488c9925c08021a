"""The reference of a comparison, and the classes that it and the samples have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sitcli.errors import UsageError
from sitcli.features.statistics import StatisticsFile
from sitcli.images.class_names import are_numbers
from sitcli.images.sets import ImageSet
from sitcli.storage.files import hash_file

LISTED = 5  # names of classes in a sentence


class Classes(NamedTuple):
    """The reference's classes that samples are of.

    covered: their names, or numbers where no names are known. numbers: the reference's numbers of
    them. total: the classes of the reference's images. share: of these images, those of the
    covered classes. foreign: classes of samples of which the reference has no image. by: whether
    the two sides' classes were matched by `name` or by `number`.
    """

    covered: list[str]
    numbers: list[int]
    total: int
    share: float
    foreign: list[str]
    by: str

    @property
    def whole(self) -> bool:
        """Whether the samples are of all the reference's classes, and of no others."""
        return len(self.covered) == self.total and not self.foreign

    @property
    def counted(self) -> str:
        """'3 of 10', for people."""
        return f"{len(self.covered):,} of {self.total:,}"

    def sentence(self, path: Path) -> str:
        """What is unequal, for people."""
        text = (
            f"{path}: the samples are of {self.counted} classes of the reference "
            f"({listed(self.covered)}), which have {self.share:.1%} of its images"
        )
        if self.by == "number":
            text += " (a side has no names of classes: they are matched by number)"
        if self.foreign:
            text += f"; it has no images of {listed(self.foreign)}, which the samples are of"
        return text


def listed(words: Sequence[str]) -> str:
    """The first words, and how many more there are."""
    more = f" and {len(words) - LISTED:,} more" if len(words) > LISTED else ""
    return ", ".join(words[:LISTED]) + more if words else "none"


def shared_classes(
    samples: ImageSet, images: ImageSet | None, indices: np.ndarray
) -> Classes | str:
    """What is known of the classes of `samples` and of images[indices], or why nothing is.

    Classes of one name are the same class. If a side has no names, or one of two sides with as many
    classes has numbers for names, those of one number are, which holds for data sets whose classes
    are numbered in the order of their folders.
    """
    if images is None:
        return "the reference has no images"
    for what, side in (("samples", samples), ("reference", images)):
        if side.labels is None or (not side.class_names and not np.any(side.labels)):
            return (
                f"the {what} have no classes" if side is samples else f"the {what} has no classes"
            )
        if side.class_names and side.labels.max() >= len(side.class_names):
            return f"labels of {side.path} have no names"
    wanted, numbers = np.unique(samples.labels), np.unique(images.labels[indices])
    names, own_names = samples.class_names, images.class_names
    numbered = are_numbers(names) != are_numbers(own_names) and len(names) == len(own_names)
    if names and own_names and not numbered:
        own = {own_names[i]: int(i) for i in numbers}
        names = [names[i] for i in wanted]
        if not own.keys() & set(names):
            return "samples and reference have no name of a class in common"
        by = "name"
    else:
        known = len(names or own_names) or max(wanted[-1], numbers[-1]) + 1
        own = {str(i): int(i) for i in numbers}
        names, by = [str(i) for i in wanted], "number"
        if max(wanted[-1], numbers[-1]) >= known:
            return "samples and reference number their classes differently"
    covered = [name for name in names if name in own]
    chosen = [own[name] for name in covered]
    share = float(np.isin(images.labels[indices], chosen).mean())
    foreign = [name for name in names if name not in own]
    return Classes(covered, chosen, len(own), share, foreign, by)


def indices_of_classes(
    sets: Sequence[ImageSet], images: ImageSet | None, path: Path
) -> tuple[np.ndarray, bool]:
    """The images of the samples' classes, and whether others are left out.

    Raises UsageError if the classes are not known, or the sample sets differ in them.
    """
    everything = np.arange(images.num if images is not None else 0)
    found = [shared_classes(samples, images, everything) for samples in sets]
    for samples, classes in zip(sets, found, strict=True):
        if isinstance(classes, str):
            raise UsageError(
                f"--reference-classes same: {samples.path} and {path} cannot be matched: {classes}",
                "remove --reference-classes, or give a --reference with the same classes, a folder "
                "each",
            )
        if classes.numbers != found[0].numbers:
            raise UsageError(
                f"--reference-classes same: {sets[0].path} and {samples.path} are of different "
                "classes",
                "run sit evaluate once for each",
            )
    chosen = np.flatnonzero(np.isin(images.labels, found[0].numbers))
    return chosen, len(chosen) < len(everything)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference of a comparison: images[indices], or an npz's statistics, or both.

    classes: of each sample set, what is known of its classes and the reference's, or why nothing
    is. same_classes: whether the other classes are left out.
    """

    path: Path
    images: ImageSet | None
    indices: np.ndarray
    statistics: StatisticsFile | None
    classes: Sequence[Classes | str]
    same_classes: bool = False

    @property
    def text(self) -> str:
        """The reference, for people."""
        if self.images is None:
            return f"{self.path} (statistics only)"
        some = self.classes[0]
        left = f", {some.counted} of its classes" if self.same_classes else ""
        return describe_images(self.images, len(self.indices)) + left

    @property
    def short(self) -> str:
        """Its name, number of images, and the classes if the samples lack some, for a table."""
        if self.images is None:
            return self.path.name
        text, classes = f"{len(self.indices):,}", self.classes[0]
        if isinstance(classes, Classes) and not classes.whole:
            ours = "" if self.same_classes else "samples of "
            text += f", {ours}{classes.counted} classes"
        return f"{self.path.name} ({text})"

    def record(self, number: int) -> dict[str, Any]:
        """The reference as a figure of the sample set with this number names it."""
        num, images = len(self.indices), self.images
        return {
            "path": str(self.path.resolve()),
            "kind": images.kind if images is not None else "statistics",
            "hash": images.fingerprint if images is not None else hash_file(self.path),
            "num": num or None,
            "size": list(images.size) if images is not None else None,
            "preparation": images.preparation if images is not None else None,
            "classes": self._classes_record(self.classes[number]),
        }

    def _classes_record(self, classes: Classes | str) -> dict[str, Any]:
        if isinstance(classes, str):
            return {"unknown": classes}
        return {
            "compared": "same" if self.same_classes else "all",
            "samples": len(classes.covered),
            "reference": classes.total,
            "names": classes.covered,
            "share": classes.share,
            "not_in_reference": classes.foreign,
            "by": classes.by,
        }


def describe_images(images: ImageSet, num: int) -> str:
    """The images, for people; num: how many of them are used."""
    what = "the source images of " if images.kind == "latent store" else ""
    return f"{what}{images.path} ({num:,} images, {size_of(images)}, {images.preparation})"


def size_of(images: ImageSet) -> str:
    """'WIDTHxHEIGHT' in pixels."""
    return f"{images.size[1]}x{images.size[0]}"
