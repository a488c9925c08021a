"""Checks of contents that stores, runs and sample sets share."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from sitcli.autoencoders.base import hash_arrays
from sitcli.errors import SitError
from sitcli.events import Event
from sitcli.images.class_names import titles
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import Checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.samples.sample_set import SampleSet
from sitcli.storage import rows

READ_BYTES = 32_000_000
PREVIEW_ROWS, PREVIEW_COLUMNS = 8, 8
Artefact = LatentStore | SampleSet | RunDir | Checkpoint
Problems = Generator[Event, None, list[str]]


def items_to_preview(labels: np.ndarray, names: list[str]) -> tuple[np.ndarray, int, list[str]]:
    """The items of the preview: (indices, columns, labels of the rows or []).

    If each class has at least two items, one row per class, spread over the classes; otherwise
    items spread over all, without labels. Raises SitError if there are no items.
    """
    if not len(labels):
        raise SitError("there is nothing to preview yet: no image is finished")
    classes = np.unique(labels)
    classes = classes[_spread(len(classes), PREVIEW_ROWS)]
    members = [np.flatnonzero(labels == label) for label in classes]
    columns = min(PREVIEW_COLUMNS, *map(len, members), len(labels))
    if names and columns > 1:
        chosen = [m[_spread(len(m), columns)] for m in members]
        shown = titles(names)
        return np.concatenate(chosen), columns, [shown[label] for label in classes]
    chosen = _spread(len(labels), PREVIEW_ROWS * PREVIEW_COLUMNS)
    return chosen, min(PREVIEW_COLUMNS, math.isqrt(len(chosen) - 1) + 1), []


def _spread(total: int, count: int) -> np.ndarray:
    """`count` numbers of range(total), evenly spread; all of them if total is smaller."""
    return np.arange(min(total, count)) * total // min(total, count)


def in_pieces(array: np.ndarray) -> list[tuple[int, int]]:
    """Row ranges of about READ_BYTES each."""
    step = max(1, READ_BYTES // max(1, array[:1].nbytes))
    return [(start, min(len(array), start + step)) for start in range(0, len(array), step)]


def check_flags(written: np.ndarray, *, complete: bool) -> list[str]:
    """Problems with the flags of the rows, (N,) MISSING, DONE or BROKEN."""
    problems = []
    if not np.isin(written, (rows.MISSING, rows.DONE, rows.BROKEN)).all():
        problems.append("the written flags hold values that sit never writes")
    if complete and (written == rows.MISSING).any():
        missing = int((written == rows.MISSING).sum())
        problems.append(f"it is marked complete, but {missing} rows were not written")
    return problems


def check_arrays(spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[str]:
    """Problems with an embedded autoencoder's arrays."""
    if arrays and hash_arrays(arrays) != spec["hash"]:
        return ["the autoencoder's basis does not have the hash of its spec"]
    return []


def check_labels(labels: np.ndarray, num_classes: int) -> list[str]:
    """Problems with the labels (N,)."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < max(1, num_classes):
        return [f"labels run from {labels.min()} to {labels.max()}, of {num_classes} classes"]
    return []


def describe_classes(names: Sequence[str], counts: np.ndarray) -> str:
    """The classes and their number of images, for people."""
    if not len(names):
        return "none (unconditional)"
    names = titles(names)
    low, high = counts.min(), counts.max()
    each = f"{low} to {high}" if low < high else f"{low}"
    empty = [name for name, number in zip(names, counts, strict=True) if not number]
    without = f"; {len(empty)} without images: {listed(empty)}" if empty else ""
    return f"{len(names)} of {each} images: {listed(names)}{without}"


def listed(values: Sequence[Any], form: str = "") -> str:
    """The first few and the last: 'a, b, c, ... z'."""
    texts = [format(value, form) for value in values]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:6], f"... {texts[-1]}"])
