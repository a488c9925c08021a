"""Writes the source's rows into the store, some megabytes at a time."""

from __future__ import annotations

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from sitcli.commands.import_latents.job import Job
from sitcli.commands.import_latents.source import Source
from sitcli.events import Event, Progress
from sitcli.latents.layout import create_store, row_checksums
from sitcli.latents.scaling import Scaling
from sitcli.latents.store import PIECE
from sitcli.machine.devices import one_thread, tune_cpu
from sitcli.storage.files import hash_json
from sitcli.storage.rows import MISSING, Rows

BATCH_BYTES = 32_000_000  # of float16, read and written at once


def begin(job: Job) -> None:
    """Create OUT with no row written."""
    source, settings = job.source, job.settings
    normalize = {} if job.normalize is None else {"normalize": job.normalize}
    unscaled = Scaling((1.0,) * source.channels, (0.0,) * source.channels)
    classes = [] if source.labels is None else [str(n) for n in range(source.num_classes)]
    create_store(
        settings.out,
        paths=source.names,
        labels=np.zeros(len(source), np.int64) if source.labels is None else source.labels,
        class_names=classes,
        row_shape=source.row_shape,
        kind="moments" if source.moments else "latents",
        flips=len(source.reads) > 1,
        autoencoder=job.spec,
        autoencoder_arrays=job.arrays,
        scaling=unscaled if job.normalize else job.scaling,
        image_size=job.image_size,
        crop="adm",
        source=str(settings.source),
        source_fingerprint=source.fingerprint,
        vae=job.spec["name"],
        batch_size=_batch_size(source),
        precision="fp32",
        source_facts=dict(
            labels_from=source.labels_from,
            imported=dict(layout=source.layout, facts=hash_json(job.facts), words=job.words),
            **normalize,
        ),
    )


def _batch_size(source: Source) -> int:
    """Rows that are read and written at once: a multiple of what the source reads at once."""
    size = BATCH_BYTES // (2 * int(np.prod(source.row_shape)) * len(source.reads))
    return source.at_once * max(1, size // source.at_once)


def fill(job: Job) -> Generator[Event, None, float]:
    """Write the rows that OUT lacks; returns bytes of the store per second.

    Raises SitError naming the file and row for a value that cannot be stored.
    """
    with (
        Rows(job.settings.out, writable=True) as file,
        ThreadPoolExecutor(1) as reader,
    ):
        tune_cpu(torch.device("cpu"))
        size, written, total = file.attrs["batch_size"], file.written, file.num_rows
        starts = [
            start for start in range(0, total, size)
            if (written[start : start + size] == MISSING).any()
        ]  # fmt: skip
        done, start_time, stored = int(np.count_nonzero(written)), time.monotonic(), 0
        yield Progress(done=done, total=total)

        def batch(start: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            return _batch(job, start, min(start + size, total))

        # The next batch is read while this one is written.
        coming = reader.submit(batch, starts[0]) if starts else None
        for following in [*starts[1:], None]:
            if coming is None:
                break
            numbers, arrays = coming.result()
            coming = None if following is None else reader.submit(batch, following)
            file.write(numbers, **arrays)
            done += int(np.count_nonzero(written[numbers] == MISSING))
            stored += sum(array.nbytes for array in arrays.values())
            yield Progress(done=done, total=total)
    return stored / max(time.monotonic() - start_time, 1e-9)


def _batch(job: Job, start: int, stop: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Numbers of rows start to stop, and what the store keeps of them."""
    source, shape = job.source, job.source.row_shape
    names = ("latents", "latents_flipped")[: len(source.reads)]
    arrays = {name: np.empty((stop - start, *shape), np.float16) for name in names}
    checksums = np.empty((stop - start, len(names)), np.uint32)
    # As many at a time as stay in the processor's cache, or as the source reads at once.
    step = source.at_once * max(1, PIECE // (int(np.prod(shape)) * source.at_once))
    with one_thread():
        for copy, name in enumerate(names):
            for first in range(0, stop - start, step):
                piece = slice(first, min(first + step, stop - start))
                rows = source.read(copy, start + piece.start, start + piece.stop, given=job.given)
                torch.from_numpy(arrays[name])[piece].copy_(rows)
                checksums[piece, copy] = row_checksums(arrays[name][piece])[:, 0]
    return np.arange(start, stop), arrays | {"crc32": checksums}
