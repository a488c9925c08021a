"""Features of many images: extracted once, kept beside the images, summed on every rank."""

from __future__ import annotations

import contextlib
import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli import __version__
from sitcli.errors import SitError
from sitcli.events import Event, Progress, Warn
from sitcli.features.base import Extractor, Features, Layer
from sitcli.images.sets import ImageSet, batches
from sitcli.machine.ranks import all_agree, on_rank_0, wait_for_all
from sitcli.machine.world import World
from sitcli.metrics.metric import Collected
from sitcli.metrics.moments import Moments
from sitcli.storage import locks
from sitcli.storage import rows as row_file
from sitcli.storage.files import make_folder, replacing
from sitcli.storage.npz import NPZ_ERRORS

KEEP_BYTES = 1 << 30  # a larger array of features is not kept, only its mean and covariance
BLOCK = 256  # features of about so many images are written at once; an interruption loses them
CHUNK = 1024  # images summed together where features are not kept
SAVE_SECONDS = 60.0  # between two savings of these sums


def most_kept(width: int) -> int:
    """The largest number N of images whose features (N, width) are kept."""
    return KEEP_BYTES // (4 * width)


def kept_path(images: ImageSet, indices: np.ndarray, layer: Layer, ending: str) -> Path:
    """The file, ending in `ending`, that belongs to one layer's features of images[indices]."""
    which = hashlib.sha256(images.version.encode() + np.asarray(indices, "<i8").tobytes())
    name = f"{layer.tag}-{which.hexdigest()[:16]}-{len(indices)}{ending}"
    return images.stats_folder / name


def collect(
    images: ImageSet,
    indices: np.ndarray,
    parts: np.ndarray,
    widths: Mapping[Layer, int],
    *,
    summed: Sequence[Layer],
    extractors: Mapping[Features, Extractor],
    world: World,
    check_peers: Callable[[], None],
    batch_size: int,
    count: Count,
) -> Generator[Event, None, dict[Layer, Collected]]:
    """Features of images[indices] by layer, on rank 0; {} on the other ranks.

    Each rank extracts its share. widths: the wanted layers and the number of features of each.
    parts: (N,) of 0 and 1. summed: the layers whose moments are computed, for each part
    separately. Features that were kept by an earlier run are read, not extracted again; a warning
    says why if they cannot be kept. count: the progress over all sets.
    """
    job = _Job(images, indices, parts, widths, extractors, world, check_peers, batch_size, count)
    if len(indices) > most_kept(max(widths.values())):
        result = yield from _collect_sums(job)
    else:
        result = yield from _collect_rows(job, summed)
    count.base += len(indices)
    return result


def _collect_rows(
    job: _Job, summed: Sequence[Layer]
) -> Generator[Event, None, dict[Layer, Collected]]:
    world, count = job.world, job.count
    with contextlib.ExitStack() as stack:

        def begin() -> tuple[list[Path], np.ndarray, str]:
            paths = [kept_path(job.images, job.indices, layer, ".features") for layer in job.widths]
            lost = ""
            try:
                files = _open_all(paths, job, stack)
            except SitError as error:
                lost = error.message
                paths = _elsewhere(paths, stack)
                files = _open_all(paths, job, stack)
            missing = np.any([file.written == row_file.MISSING for file in files], axis=0)
            return paths, np.flatnonzero(missing), lost

        paths, todo, lost = on_rank_0(world, begin)
        if lost:
            yield Warn(f"features are not kept for later runs: {lost}")
        files = all_agree(world, lambda: [row_file.Rows(path, writable=True) for path in paths])
        for file in files:
            stack.enter_context(file)
        flags = [file.array("written") for file in files]

        def progress(waiting: int = 0) -> Progress:
            return count.at(waiting + min(int((f == row_file.DONE).sum()) for f in flags))

        yield progress()
        # Shares are whole batches, so that batches do not depend on the number of processes.
        share = min(BLOCK, math.ceil(len(todo) / world.size))
        step = max(1, share // job.batch_size) * job.batch_size
        for start in range(world.rank * step, len(todo), world.size * step):
            block, found = todo[start : start + step], []
            for batch in job.extract(block):
                found.append(batch)
                yield progress(sum(len(next(iter(b.values()))) for b in found))
                job.check_peers()
            for layer, file in zip(job.widths, files, strict=True):
                file.write(block, features=np.concatenate([batch[layer] for batch in found]))
            yield progress()
        for _ in wait_for_all(world):
            yield progress()
            job.check_peers()
        tables = {
            layer: file.array("features") for layer, file in zip(job.widths, files, strict=True)
        }
        # On Linux a map stays valid after its file is removed, as a temporary folder's files are.
    if world.rank:
        return {}
    result = {}
    for layer, table in tables.items():
        sums = job.no_sums(layer) if layer in summed else []
        for start in range(0, len(table), BLOCK) if sums else ():
            _accumulate(sums, job.parts[start : start + BLOCK], table[start : start + BLOCK])
        result[layer] = Collected(features=table, parts=job.parts, moments=sums)
    return result


def _open_all(paths: Sequence[Path], job: _Job, stack: contextlib.ExitStack) -> list[row_file.Rows]:
    num = len(job.indices)
    return [
        _open_rows(path, num, width, layer, stack)
        for path, (layer, width) in zip(paths, job.widths.items(), strict=True)
    ]


def _elsewhere(paths: Sequence[Path], stack: contextlib.ExitStack) -> list[Path]:
    """The same file names in a temporary folder, which is removed when `stack` ends."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sit-features-")))
    return [folder / path.name for path in paths]


def _open_rows(
    path: Path, num: int, width: int, layer: Layer, stack: contextlib.ExitStack
) -> row_file.Rows:
    """The row file of features at `path`, created if missing, open and locked until `stack` ends.

    A file that is damaged or of another shape is replaced.
    """
    make_folder(path.parent)
    stack.enter_context(locks.lock(path))
    if path.exists():
        with contextlib.suppress(SitError):
            rows = row_file.Rows(path, writable=True)
            if "features" in rows.names and rows.shape("features") == (num, width):
                return stack.enter_context(rows)
            rows.close()
    attrs = dict(format="sit-features", features=layer.features.tag, layer=layer.name)
    attrs["sit_version"] = __version__
    row_file.create(path, {"features": ((num, width), "<f4")}, attrs=attrs)
    return stack.enter_context(row_file.Rows(path, writable=True))


def _collect_sums(job: _Job) -> Generator[Event, None, dict[Layer, Collected]]:
    """Moments of one chunk after the other; each rank saves its own every SAVE_SECONDS.

    Rank 0 merges what all ranks saved.
    """
    world, num = job.world, len(job.indices)
    with contextlib.ExitStack() as stack:

        def begin() -> tuple[Path, _Sums, str]:
            path = kept_path(job.images, job.indices, next(iter(job.widths)), job.sums_ending())
            lost = ""
            try:
                make_folder(path.parent)
                stack.enter_context(locks.lock(path))
            except SitError as error:
                lost = error.message
                (path,) = _elsewhere([path], stack)
            sums = _merge_saved(path, job)
            sums.save(_rank_path(path, 0))
            for other in _saved(path):
                if other != _rank_path(path, 0):
                    other.unlink(missing_ok=True)
            return path, sums, lost

        path, sums, lost = on_rank_0(world, begin)
        if lost:
            yield Warn(f"sums of features are not kept for later runs: {lost}")
        chunks = [c for c in range(math.ceil(num / CHUNK)) if c not in sums.chunks]
        done = num - sum(min(CHUNK, num - c * CHUNK) for c in chunks)
        if world.rank:
            sums = _Sums(set(), {layer: job.no_sums(layer) for layer in job.widths})
        yield job.count.at(done)
        saved = time.monotonic()
        for chunk in chunks[world.rank :: world.size]:
            rows = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, num))
            # Sums are merged only when the chunk is whole, so saved sums have no half chunks.
            fresh = {layer: job.no_sums(layer) for layer in job.widths}
            for batch in job.extract(rows):
                some, rows = np.split(rows, [len(next(iter(batch.values())))])
                for layer, features in batch.items():
                    _accumulate(fresh[layer], job.parts[some], features)
                done += len(some) * world.size  # the other ranks are about as far
                yield job.count.at(min(done, num))
                job.check_peers()
            sums.merge(_Sums({chunk}, fresh))
            if time.monotonic() - saved > SAVE_SECONDS:
                sums.save(_rank_path(path, world.rank))
                saved = time.monotonic()
        all_agree(world, lambda: sums.save(_rank_path(path, world.rank)))
        for _ in wait_for_all(world):
            yield job.count.at(min(done, num))
            job.check_peers()
        if world.rank:
            return {}
        whole = _merge_saved(path, job)
    yield job.count.at(num)
    return {
        layer: Collected(features=None, parts=job.parts, moments=moments)
        for layer, moments in whole.moments.items()
    }


def _rank_path(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.{rank}.npz")


def _saved(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*.npz"))


def _merge_saved(path: Path, job: _Job) -> _Sums:
    """All sums that the ranks of this or an earlier run saved, with each chunk counted once."""
    found = []
    for file in _saved(path):
        with contextlib.suppress(*NPZ_ERRORS):
            found.append(_Sums.load(file, job))
    merged = _Sums(set(), {layer: job.no_sums(layer) for layer in job.widths})
    # A run killed between merging and removing leaves the merged file beside its parts.
    for sums in sorted(found, key=lambda sums: -len(sums.chunks)):
        if not sums.chunks & merged.chunks:
            merged.merge(sums)
    return merged


def _accumulate(sums: Sequence[Moments], parts: np.ndarray, block: np.ndarray) -> None:
    for part, total in enumerate(sums):
        total.add(block[parts == part])


@dataclass
class Count:
    """Progress over several sets: the total of images, and `base`, those of the sets before."""

    total: int
    base: int = 0

    def at(self, num: int) -> Progress:
        """The progress once `num` images of this set are done."""
        return Progress(done=self.base + num, total=self.total)


@dataclass(frozen=True)
class _Job:
    """The arguments of `collect`."""

    images: ImageSet
    indices: np.ndarray
    parts: np.ndarray
    widths: Mapping[Layer, int]
    extractors: Mapping[Features, Extractor]
    world: World
    check_peers: Callable[[], None]
    batch_size: int
    count: Count

    def extract(self, rows: np.ndarray) -> Iterator[dict[Layer, np.ndarray]]:
        """Features of images[indices[rows]], a batch at a time."""
        reader = batches(self.images, self.indices[rows], self.batch_size)
        with contextlib.closing(reader):
            for batch in reader:
                found = {}
                for features, extractor in self.extractors.items():
                    with torch.inference_mode():
                        layers = extractor.extract(batch)
                    for name, values in layers.items():
                        if not torch.isfinite(values).all():
                            raise SitError(
                                f"{self.images.path}: the extractor gives features that are not "
                                "finite"
                            )
                        found[Layer(features, name)] = values.numpy()
                yield {layer: found[layer] for layer in self.widths}

    def no_sums(self, layer: Layer) -> list[Moments]:
        """Empty moments of each part."""
        return [Moments(self.widths[layer]) for _ in range(int(self.parts.max()) + 1)]

    def sums_ending(self) -> str:
        """The ending of the saved sums' file: a hash of the layers and parts they belong to."""
        tags = ",".join(layer.tag for layer in self.widths)
        return "-" + hashlib.sha256(tags.encode() + self.parts.tobytes()).hexdigest()[:8] + ".sums"


@dataclass
class _Sums:
    """Moments of each part of each layer over whole chunks of images."""

    chunks: set[int]
    moments: dict[Layer, list[Moments]] = field(default_factory=dict)

    def merge(self, other: _Sums) -> None:
        """Add everything that `other` has."""
        self.chunks |= other.chunks
        for layer, parts in other.moments.items():
            for total, part in zip(self.moments[layer], parts, strict=True):
                total.merge(part)

    def save(self, path: Path) -> None:
        """Write the sums to an npz. Raises SitError if it cannot be written."""
        values: dict[str, Any] = {"chunks": np.array(sorted(self.chunks), np.int64)}
        for layer, parts in self.moments.items():
            for i, part in enumerate(parts):
                for name in ("num", "mean", "scatter"):
                    values[f"{layer.tag}/{i}/{name}"] = getattr(part, name)
        try:
            with replacing(path, durable=False) as temporary, open(temporary, "wb") as file:
                np.savez(file, **values)
        except OSError as error:
            raise SitError(f"cannot write {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path, job: _Job) -> _Sums:
        """The sums in an npz. Raises one of NPZ_ERRORS if they cannot be read."""
        with np.load(path, allow_pickle=False) as archive:
            sums = cls(set(archive["chunks"].tolist()), {})
            for layer, width in job.widths.items():
                sums.moments[layer] = job.no_sums(layer)
                for i, part in enumerate(sums.moments[layer]):
                    part.num = int(archive[f"{layer.tag}/{i}/num"])
                    part.mean = archive[f"{layer.tag}/{i}/mean"]
                    part.scatter = archive[f"{layer.tag}/{i}/scatter"]
                    if part.mean.shape != (width,) or part.scatter.shape != (width, width):
                        raise ValueError("other shapes")
        return sums
