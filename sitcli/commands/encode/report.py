"""The report of `sit encode-latents`: its summary and the next command."""

from __future__ import annotations

import shlex
from pathlib import Path

from sitcli.commands.encode.fill import NAMED_BROKEN, strict_error
from sitcli.commands.newest import newest_store
from sitcli.errors import SitError
from sitcli.events import Result
from sitcli.images.source import Source
from sitcli.latents.store import LatentStore
from sitcli.settings.encode import EncodeSettings
from sitcli.text import count, format_bytes, format_shape

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
        "broken": [{"name": name, "problem": problem} for name, problem in broken],
        "row_shape": list(shape),
        "flips": store.has_flips,
        "kind": store.kind,
        "image_size": store.image_size,
        "crop": store.crop,
        "autoencoder": spec,
        "scaling": store.scaling,
        "align": store.align,
        "bytes": size,
        "checksum": store.attrs["checksum"],
        "images_per_second": pace,
    }
    return Result(summary=summary, data=data, path=settings.out, next=_train_command(settings.out))


def _train_command(out: Path) -> str:
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
    other = f", {source.skipped} other files skipped" if source.skipped else ""
    return f"{source.path}: {count(len(source), 'image')}, {classes}{other}"
