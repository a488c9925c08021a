"""Features of many images, kept beside the images row by row.

An interrupted extraction goes on where it was, and a second metric costs no second pass through
the network. What is too large to keep is reduced to mean and covariance on the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sitcli import __version__
from sitcli.errors import SitError
from sitcli.events import Event, Progress, Warn
from sitcli.io import rows as row_file
from sitcli.io.features import (
    Extractor,
    Features,
    Gaussian,
    Moments,
    load_statistics,
    save_statistics,
)
from sitcli.io.files import make_folder
from sitcli.io.imagesets import ImageSet, batches

KEEP_BYTES = 1 << 30  # features of more than this are not kept, only their mean and covariance
BLOCK = 256  # images whose features are written together; what an interruption can lose


def most_kept(width: int) -> int:
    """Number of images whose features (N, width) are kept."""
    return KEEP_BYTES // (4 * width)


def kept_path(images: ImageSet, indices: np.ndarray, features: Features, ending: str) -> Path:
    """Where something about the features of images[indices] is kept."""
    tag = features.tag.replace(":", "-")
    which = hashlib.sha256(images.version.encode() + np.asarray(indices, "<i8").tobytes())
    return images.stats_folder / f"{tag}-{which.hexdigest()[:16]}-{len(indices)}{ending}"


def collect(
    images: ImageSet,
    indices: np.ndarray,
    parts: np.ndarray,
    *,
    features: Features,
    extractor: Extractor,
    width: int,
    moments: bool,
    batch_size: int,
    count: Count,
) -> Generator[Event, None, Collected]:
    """Extract the features of images[indices], counting images in `count`.

    parts: (N,) of 0 and 1; with `moments`, the moments of each part are taken apart.
    Kept features are used instead of images; where they cannot be kept a warning says why.
    """
    sums = [Moments(width) for _ in range(int(parts.max()) + 1)] if moments else []
    if len(indices) > most_kept(width):
        position = 0
        for block in _extract(images, indices, extractor, batch_size):
            _accumulate(sums, parts[position : position + len(block)], block)
            position += len(block)
            yield count.step(len(block))
        return Collected(features=None, parts=parts, moments=sums)

    with contextlib.ExitStack() as stack:
        try:
            path = kept_path(images, indices, features, ".features")
            rows = _open_rows(path, len(indices), width, features, stack)
        except SitError as error:
            yield Warn(f"features are not kept for another time: {error.message}")
            rows = None
        if rows is None:
            table, todo = np.empty((len(indices), width), np.float32), np.arange(len(indices))
        else:
            table = rows.array("features")
            todo = np.flatnonzero(rows.written == row_file.MISSING)
        yield count.step(len(indices) - len(todo))
        waiting: list[np.ndarray] = []
        for batch in _extract(images, indices[todo], extractor, batch_size):
            waiting.append(batch)
            held = sum(map(len, waiting))
            if held >= BLOCK or held == len(todo):
                block, waiting = np.concatenate(waiting), []
                if rows is None:
                    table[todo[:held]] = block
                else:
                    rows.write(todo[:held], features=block)
                todo = todo[held:]
            yield count.step(len(batch))
    if moments:
        for start in range(0, len(table), BLOCK):
            _accumulate(sums, parts[start : start + BLOCK], table[start : start + BLOCK])
    return Collected(features=table, parts=parts, moments=sums)


def _extract(
    images: ImageSet, indices: np.ndarray, extractor: Extractor, batch_size: int
) -> Iterator[np.ndarray]:
    with contextlib.closing(batches(images, indices, batch_size)) as reader:
        for batch in reader:
            with torch.inference_mode():
                features = extractor.extract(batch)
            if not torch.isfinite(features).all():
                raise SitError(f"{images.path}: the extractor gives features that are not finite")
            yield features.numpy()


def _accumulate(sums: list[Moments], parts: np.ndarray, block: np.ndarray) -> None:
    for part, total in enumerate(sums):
        total.add(block[parts == part])


def _open_rows(
    path: Path, num: int, width: int, features: Features, stack: contextlib.ExitStack
) -> row_file.Rows:
    """The row file of features at `path`, made if it is not there, open and locked by `stack`."""
    make_folder(path.parent)
    stack.enter_context(row_file.lock(path))
    if path.exists():
        # One that is damaged or of another shape is made anew.
        with contextlib.suppress(SitError):
            rows = row_file.Rows(path, writable=True)
            if "features" in rows.names and rows.shape("features") == (num, width):
                return stack.enter_context(rows)
            rows.close()
    attrs = {"format": "sit-features", "features": features.tag, "sit_version": __version__}
    row_file.create(path, {"features": ((num, width), "<f4")}, attrs=attrs)
    return stack.enter_context(row_file.Rows(path, writable=True))


def load_kept_statistics(path: Path) -> Statistics:
    """What `keep_statistics` wrote. Raises SitError if it is damaged."""
    loaded = load_statistics(path)
    if loaded is None or loaded.gaussian.num is None or "floor" not in loaded.more:
        raise SitError(f"{path} is not complete")
    floor = float(loaded.more["floor"])
    return Statistics(loaded.gaussian, None if math.isnan(floor) else floor)


def keep_statistics(path: Path, statistics: Statistics, *, features: Features, seed: int) -> None:
    """Write them at `path`; the file can also be a --reference. Raises SitError."""
    make_folder(path.parent)
    floor = math.nan if statistics.floor is None else statistics.floor
    save_statistics(path, statistics.gaussian, floor=floor, seed=seed, features=features.tag)


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a reference, and the Frechet distance of its halves if they have
    one."""

    gaussian: Gaussian
    floor: float | None


@dataclass(frozen=True, kw_only=True)
class Collected:
    """features (N, D) float32, None where there are too many to keep; parts (N,); the moments of
    each part, if they were asked for."""

    features: np.ndarray | None
    parts: np.ndarray
    moments: list[Moments]

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Features of part 0 and of part 1."""
        return self.features[self.parts == 0], self.features[self.parts == 1]


@dataclass
class Count:
    """Images done, of the total over all sets."""

    total: int
    done: int = 0

    def step(self, num: int) -> Progress:
        """`num` more are done."""
        self.done += num
        return Progress(done=self.done, total=self.total)
