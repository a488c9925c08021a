"""The report of `sit encode-latents`: its summary and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sitcli.commands.encode.fill import NAMED_BROKEN, strict_error
from sitcli.commands.newest import newest_store
from sitcli.errors import SitError
from sitcli.events import Result
from sitcli.images.labels import LABELLINGS
from sitcli.images.source import Source
from sitcli.latents.store import LatentStore
from sitcli.settings.encode import EncodeSettings
from sitcli.text import count, format_bytes, format_shape

NAMED = 3  # classes, and files of each, that a warning names
UNKNOWN = "known when the autoencoder is loaded"


def result_of(store: LatentStore, settings: EncodeSettings, *, pace: float | None = None) -> Result:
    """The result of a complete store; pace: images per second.

    Raises SitError under --strict if an image is broken.
    """
    broken = store.broken()
    if broken and settings.strict:
        raise strict_error(*broken[0])
    classes = (
        f"in {count(store.num_classes, 'class', 'classes')}"
        if store.num_classes
        else "without classes"
    )
    copies = "2 x " if store.has_flips else ""
    shape = store.rows.shape("latents")[1:]
    spec, size = store.autoencoder, store.path.stat().st_size
    summary = {"images": f"{store.num_items} {classes}"}
    if broken:
        named = "; ".join(f"{name}: {problem}" for name, problem in broken[:NAMED_BROKEN])
        summary["broken"] = (
            f"{len(broken)} ({named}{'; ...' if len(broken) > NAMED_BROKEN else ''})"
        )
    if store.empty_classes:
        names = [f"{i} ({store.class_names[i]})" for i in store.empty_classes]
        summary["empty"] = f"{count(len(names), 'class', 'classes')}: {_shortened(names)}"
    summary["latents"] = f"{copies}{format_shape(shape)} float16 an image, {format_bytes(size)}"
    summary["autoencoder"] = f"{spec['name']} ({spec['class']}), scaling {store.scaling}"
    if store.align:
        summary["features"] = (
            f"{copies}{format_shape(store.align['shape'])} float16 an image, {store.align['name']}"
        )
    if pace:
        summary["pace"] = f"{pace:.4g} images/s"
    data = {
        "images": store.num_items,
        "num_classes": store.num_classes,
        "empty_classes": store.empty_classes,
        "broken": [{"name": name, "problem": problem} for name, problem in broken],
        "row_shape": list(shape),
        "flips": store.has_flips,
        "kind": store.kind,
        "image_size": store.image_size,
        "crop": store.crop,
        "autoencoder": spec,
        **store.scaling.facts(spec),
        "align": store.align,
        "bytes": size,
        "checksum": store.attrs["checksum"],
        "images_per_second": pace,
    }
    return Result(summary=summary, data=data, path=settings.out, next=train_command(settings.out))


def train_command(out: Path) -> str:
    try:
        if newest_store().samefile(out):
            return "sit train"
    except SitError:
        pass  # OUT lies elsewhere
    return shlex.join(["sit", "train", "--latents", str(out)])


def describe(source: Source) -> str:
    """The source's images and classes, for people."""
    classes = (
        count(len(source.class_names), "class", "classes") if source.class_names else "no classes"
    )
    if source.labelled.origin not in LABELLINGS:
        classes += f" by {source.labelled.origin}"
    kinds = ", ".join(f"{n} {ending or 'without an ending'}" for ending, n in
                      source.others.most_common(4))  # fmt: skip
    more = ", ..." if len(source.others) > 4 else ""
    other = f", {count(source.skipped, 'other file')} skipped ({kinds}{more})" if kinds else ""
    return f"{source.path}: {count(len(source), 'image')}, {classes}{other}"


def faults(source: Source) -> list[str]:
    """What a user should know of the source's classes and pictures, a line each."""
    lines, labelled = [], source.labelled
    counts = np.bincount(labelled.labels, minlength=len(source.class_names))
    empty = [source.class_names[i] for i in np.flatnonzero(counts[: len(source.class_names)] == 0)]
    if empty and labelled.origin not in LABELLINGS:
        lines.append(
            f"{count(len(empty), 'class', 'classes')} of {len(counts)} without an image: "
            f"{_shortened(empty)}"
        )
    elif empty:
        for name in empty[:NAMED]:
            files = [file for file in source.unread if file.partition("/")[0] == name]
            lines.append(
                f"class {source.class_names.index(name)}, {name}, has no image that can be read, "
                f"and keeps its number: {count(len(files), 'file')}, {_shortened(files)}"
            )
        if len(empty) > NAMED:
            lines.append(f"so do {len(empty) - NAMED} more classes: {_shortened(empty[NAMED:])}")
    rest = [file for file in source.unread if file.partition("/")[0] not in set(empty)]
    if rest:
        lines.append(
            f"{count(len(rest), 'picture')} with an ending that sit cannot read skipped: "
            f"{_shortened(rest)}"
        )
    if labelled.absent:
        lines.append(
            f"{labelled.origin} has labels for {count(len(labelled.absent), 'image')} that the "
            f"source lacks: {_shortened(labelled.absent)}"
        )
    return lines


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
