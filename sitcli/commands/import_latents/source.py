"""Latents that another project wrote, as one sequence of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sitcli.errors import SitError, UsageError
from sitcli.images.labels import MOST_CLASSES
from sitcli.latents.scaling import Scaling
from sitcli.storage.arrays import Array
from sitcli.storage.files import hash_json
from sitcli.text import format_shape

HALF_LIMIT = 65520.0  # float16 rounds this, and all beyond, to infinity
Read = Callable[[int, int], Tensor]


@dataclass(kw_only=True)
class Source:
    """Latents to import.

    layout: for people. names: of each row. labels: (N,) int64, None without classes. labels_from:
    what gave them. row_shape: (C, h, w), or (2C, h, w) with moments, the posterior's mean and std.
    reads: functions (start, stop) -> (n, *row_shape), for the images and, if there is a second, the
    mirrored images. identity: facts that tell these latents from others. scaling: what the source
    states, None if nothing; scaled: whether its values are scaled already; standardise: whether the
    project computes statistics where it states none. vae: the autoencoder of the project that wrote
    it, None if it can be any. at_once: rows that it reads together, as the chunks of zarr.
    """

    path: Path
    layout: str
    names: Sequence[str]
    labels: np.ndarray | None
    labels_from: str
    row_shape: tuple[int, ...]
    moments: bool
    reads: Sequence[Read]
    identity: Any = field(repr=False)
    scaling: Scaling | None = None
    scaled: bool = False
    standardise: bool = False
    vae: str | None = None
    num_classes: int = 0
    at_once: int = 1

    def __post_init__(self) -> None:
        self.check_shape()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def channels(self) -> int:
        """C."""
        return self.row_shape[0] // 2 if self.moments else self.row_shape[0]

    @property
    def fingerprint(self) -> str:
        """A hash of the names, sizes and labels."""
        labels = None if self.labels is None else self.labels.tolist()
        return hash_json([self.layout, self.identity, labels, self.num_classes])

    def check_shape(self) -> None:
        """Raise SitError for rows that are no latents of square images."""
        shape = self.row_shape
        if len(shape) != 3 or 0 in shape:
            wrong = "an image's latents are C x h x w"
        elif shape[1] != shape[2]:
            wrong = "sit trains on latents of square images"
        elif self.moments and shape[0] % 2:
            wrong = "the mean and standard deviation of as many channels were expected"
        else:
            return
        raise SitError(f"{self.path} holds rows of {format_shape(shape)}: {wrong}")

    def read(self, copy: int, start: int, stop: int, *, given: Scaling | None) -> Tensor:
        """Unscaled rows start to stop of a copy.

        given: how the values in the source are scaled, None for not at all.
        Raises SitError naming the row for a value that is no number or beyond float16.
        """
        rows = self.reads[copy](start, stop)
        if given is not None:
            rows = given.undo(rows.float())
        if not _storable(rows):
            number = next(i for i, row in enumerate(rows) if not _storable(row))
            bad = next(v for v in rows[number].flatten() if not _storable(v)).item()
            what = (
                "a value that is no number" if bad != bad else f"{bad:g}, more than float16 holds"
            )
            raise SitError(
                f"{self.path}: {self.names[start + number]} holds {what}",
                "repair the file, and the same command goes on",
            )
        return rows


def _storable(values: Tensor) -> bool:
    low, high = (float(value) for value in values.aminmax())
    return -HALF_LIMIT < low <= high < HALF_LIMIT


def checked_labels(
    labels: np.ndarray, names: Sequence[str], where: str, num_classes: int | None
) -> tuple[np.ndarray, int]:
    """(labels (N,) int64, number of classes). Raises UsageError naming a row whose label is wrong.

    num_classes: None for the highest label and 1. where: what gave the labels, for errors.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != len(names):
        raise UsageError(
            f"{where} holds {format_shape(labels.shape)} labels for {len(names)} latents",
            "give one class number for each",
        )
    if labels.dtype.kind not in "iu":
        raise UsageError(f"{where} holds labels of {labels.dtype}, not class numbers")
    wrong = np.flatnonzero((labels < 0) | (labels >= (num_classes or MOST_CLASSES)))
    if len(wrong):
        row, most = wrong[0], (num_classes or MOST_CLASSES) - 1
        raise UsageError(
            f"{where}: the label of {names[row]} is {labels[row]}, and classes are numbered from "
            f"0 to {most}",
            "repair it" if num_classes is None else "repair it, or give --num-classes",
        )
    return labels.astype(np.int64), num_classes or int(labels.max()) + 1


def check_alike(first: Array, other: Array) -> None:
    """Raise SitError for an array of other rows than the first."""
    if (first.shape[1:], first.dtype) != (other.shape[1:], other.dtype):
        kinds = [f"{format_shape(a.shape)} {str(a.dtype)[6:]}" for a in (first, other)]
        raise SitError(
            f"{first.path.name} and {other.path.name} in {first.path.parent} disagree: "
            f"{first.name} is {kinds[0]} and {kinds[1]}",
            "repair or remove one of them",
        )


def is_float(array: Array) -> bool:
    """Whether it can hold latents."""
    return array.dtype.is_floating_point


def needs_float(array: Array) -> None:
    """Raise SitError for latents that are whole numbers."""
    if not is_float(array):
        raise SitError(
            f"{array.path}: its latents are {str(array.dtype)[6:]}, not floating-point numbers"
        )
