"""LightningDiT's safetensors shards: `latents`, `latents_flip`, `labels`, and their statistics."""

from __future__ import annotations

import bisect
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sitcli.commands.import_latents.source import (
    Read,
    Source,
    check_alike,
    checked_labels,
    needs_float,
)
from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling
from sitcli.latents.statistics import STATISTICS, read_statistics
from sitcli.settings.latents import ImportLatentsSettings
from sitcli.storage.arrays import Array, open_arrays
from sitcli.text import format_shape

LATENTS, FLIPPED, LABELS = "latents", "latents_flip", "labels"


def find_shards(path: Path) -> Path | None:
    """`path` if it is a folder of shards, or one shard."""
    if path.is_dir():
        return path if next(path.glob("*.safetensors"), None) else None
    if path.suffix == ".safetensors" and {LATENTS, LABELS} <= open_arrays(path).keys():
        return path
    return None


def open_shards(path: Path, settings: ImportLatentsSettings) -> Source:
    """Unscaled samples of the posterior, of the images and of the mirrored images.

    Its loader takes the shards in order of their names, and subtracts the mean and divides by the
    standard deviation of latents_stats.pt, per channel.
    (github.com/hustvl/LightningDiT, extract_features.py and datasets/img_latent_dataset.py)
    """
    shards = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    arrays = [open_arrays(shard) for shard in shards]
    without = settings.labels == "none"
    if settings.labels is not None and not without:
        raise UsageError(
            f"--labels {settings.labels} has no effect: the shards have labels of their own",
            "remove --labels, or add --labels none",
        )
    wanted = [LATENTS] if without else [LATENTS, LABELS]
    if FLIPPED in arrays[0]:
        wanted.append(FLIPPED)
    for shard, found in zip(shards, arrays, strict=True):
        _check_shard(shard, found, wanted, arrays[0])
    names = [f"{s.name}:{i}" for s, a in zip(shards, arrays, strict=True)
             for i in range(a[LATENTS].shape[0])]  # fmt: skip
    labels, num_classes = None, 0
    if not without:
        read = [a[LABELS].read(0, a[LABELS].shape[0]).numpy() for a in arrays]
        labels, num_classes = checked_labels(
            np.concatenate(read), names, str(path), settings.num_classes
        )
    shape = arrays[0][LATENTS].shape[1:]
    return Source(
        path=path, layout="LightningDiT's shards", names=names, labels=labels,
        labels_from="none" if without else LABELS, row_shape=shape, moments=False,
        reads=[_in_turn([a[key] for a in arrays]) for key in wanted if key != LABELS],
        identity=[(s.name, s.stat().st_size) for s in shards], num_classes=num_classes,
        scaling=_statistics(path if path.is_dir() else path.parent, shape[0]), standardise=True,
    )  # fmt: skip


def _check_shard(
    shard: Path, found: dict[str, Array], wanted: list[str], first: dict[str, Array]
) -> None:
    if lacking := [name for name in wanted if name not in found]:
        hint = "add --labels none to import without classes" if lacking == [LABELS] else ""
        raise SitError(f"{shard} has no '{lacking[0]}'", hint or "expected LightningDiT's shards")
    needs_float(found[LATENTS])
    for name in wanted:
        check_alike(first[name], found[name])
        if found[name].shape[:1] != found[LATENTS].shape[:1]:
            raise SitError(
                f"{shard} has {format_shape(found[LATENTS].shape)} latents and "
                f"{format_shape(found[name].shape)} '{name}'",
                "write or fetch it again",
            )
    if FLIPPED in found and FLIPPED not in wanted:
        raise SitError(f"{shard} has '{FLIPPED}', and the first shard has none")
    if FLIPPED in wanted and found[FLIPPED].shape != found[LATENTS].shape:
        raise SitError(f"{shard}: '{FLIPPED}' and '{LATENTS}' have other shapes")


def _in_turn(arrays: list[Array]) -> Read:
    """Rows of the arrays as of one."""
    ends = np.cumsum([array.shape[0] for array in arrays]).tolist()

    def read(start: int, stop: int) -> Tensor:
        parts = []
        while start < stop:
            number = bisect.bisect_right(ends, start)
            begin, end = ends[number] - arrays[number].shape[0], min(stop, ends[number])
            parts.append(arrays[number].read(start - begin, end - begin))
            start = end
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return read


def _statistics(folder: Path, channels: int) -> Scaling | None:
    """The scaling of latents_stats.pt, None if there is no such file."""
    path = folder / STATISTICS
    return read_statistics(path, channels) if path.is_file() else None
