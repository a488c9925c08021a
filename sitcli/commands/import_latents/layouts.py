"""The layouts that `sit import-latents` knows, a row each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sitcli.commands.import_latents.arrays import find_arrays, open_array
from sitcli.commands.import_latents.folders import (
    find_fast_dit,
    find_repa,
    open_fast_dit,
    open_repa,
)
from sitcli.commands.import_latents.shards import find_shards, open_shards
from sitcli.commands.import_latents.source import Source
from sitcli.errors import SitError, UsageError
from sitcli.settings.latents import ImportLatentsSettings


class Layout(NamedTuple):
    """find(path): the file or folder to open, None if `path` is of another layout.
    open(found, settings): its latents. one_array: whether --key can name the array.
    """

    find: Callable[[Path], Path | None]
    open: Callable[[Path, ImportLatentsSettings], Source]
    one_array: bool = False


# Tried in this order: LightningDiT's shard is also a file of arrays.
LAYOUTS = (
    Layout(find_repa, open_repa),
    Layout(find_fast_dit, open_fast_dit),
    Layout(find_shards, open_shards),
    Layout(find_arrays, open_array, one_array=True),
)


def open_source(settings: ImportLatentsSettings) -> Source:
    """The latents at SRC. Raises SitError if they are of no known layout, or damaged."""
    path = settings.source
    if not path.exists():
        raise SitError(f"there is no {path}", "name a folder or a file of latents")
    for layout in LAYOUTS:
        found = layout.find(path)
        if found is None or (settings.key is not None and not layout.one_array):
            continue
        return layout.open(found, settings)
    if settings.key is not None:
        raise UsageError(f"--key has no effect: {path} is not a file of arrays", "remove --key")
    raise SitError(
        f"{path} holds no latents that sit knows",
        "it reads REPA's vae-sd/ with its dataset.json, fast-DiT's NAME_features/ beside "
        "NAME_labels/, LightningDiT's .safetensors, and .npy, .npz, .safetensors or zarr arrays",
    )
