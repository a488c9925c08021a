"""A latent store whose source has more images now: it grows in a file beside it.

The rows of the store are copied, the new images follow them, and the whole file takes the store's
place in one rename once it is complete. Until then the store is as it was; who reads it goes on
reading the old file, also after the rename.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sitcli.errors import SitError
from sitcli.images.source import Source
from sitcli.latents.layout import (
    ATTRS,
    NORMALISATION,
    SOURCE_FACTS,
    create_store,
    open_rows,
    row_datasets,
)
from sitcli.latents.scaling import Scaling
from sitcli.latents.store import LatentStore
from sitcli.storage.files import sync_folder
from sitcli.storage.rows import MISSING, Rows

KNOWN = {*ATTRS, *SOURCE_FACTS, *NORMALISATION, "format", "format_version", "align"}
COPIED = 32_000_000  # bytes of latents that are copied at once


def growing_path(out: Path) -> Path:
    """The hidden file beside `out` in which it grows."""
    return out.with_name(f".{out.name}.growing")


def record_of(file: Rows) -> dict[str, Any]:
    """What a grown store keeps of the store that it was: see GROWN in latents/layout.py."""
    attrs = file.attrs
    return {
        "rows": file.num_rows,
        "classes": file.shape("class_names")[0],
        "fingerprint": attrs["fingerprint"],
        "checksum": attrs["checksum"],
    }


def begun_growing(file: Rows) -> Rows | None:
    """The file in which an earlier run let the store `file` grow; None if there is none of it."""
    path = growing_path(file.path)
    try:
        growing = open_rows(path)
    except SitError:
        return None
    grown = growing.attrs.get("grown")
    return growing if grown and grown[-1] == record_of(file) else None


def create_grown(file: Rows, source: Source, path: Path, facts: Mapping[str, Any]) -> None:
    """Create the file at `path` with the rows of the store `file` to come, and those of the
    source's new images after them.

    source: its first images are those of the rows. facts: see create_store.
    Raises SitError if the disk cannot hold it.
    """
    attrs = file.attrs
    grown = [*attrs.get("grown", []), record_of(file)]
    # What later versions may keep of a store stays with it.
    others = {name: value for name, value in attrs.items() if name not in KNOWN}
    create_store(
        path,
        paths=[item.name for item in source.items],
        labels=np.array(source.labelled.labels),
        class_names=source.class_names,
        row_shape=file.shape("latents")[1:],
        kind=attrs["kind"],
        flips=attrs["flips"],
        autoencoder=attrs["autoencoder"],
        autoencoder_arrays=LatentStore(file).autoencoder_arrays,
        scaling=Scaling.of(attrs),  # also of --normalize channels: what was trained on it stays
        image_size=attrs["image_size"],
        crop=attrs["crop"],
        source=str(source.path),
        source_fingerprint=source.fingerprint,
        vae=attrs["vae"],
        batch_size=attrs["batch_size"],
        precision=attrs["precision"],
        align=attrs.get("align"),
        source_facts={**others, **facts, "grown": grown},
    )


def copy_rows(file: Rows, grown: Rows) -> Iterator[int]:
    """Copy the rows of the store that the grown file lacks; yields how many it has."""
    num, names = file.num_rows, row_datasets(file)
    written = file.written
    todo = np.flatnonzero((written != MISSING) & (grown.written[:num] == MISSING))
    step = max(1, COPIED // file.array("latents")[0].nbytes)
    for start in range(0, len(todo), step):
        rows = todo[start : start + step]
        values = {name: np.ascontiguousarray(file.array(name)[rows]) for name in names}
        grown.write(rows, status=written[rows], **values)
        yield int(np.count_nonzero(grown.written))


def take_place(grown: Path, out: Path) -> None:
    """Put the complete grown file in the store's place."""
    os.replace(grown, out)
    sync_folder(out.parent)


def drop_growing(out: Path) -> None:
    """Remove what another growth of the store began, if there is any."""
    with contextlib.suppress(OSError):
        growing_path(out).unlink()
