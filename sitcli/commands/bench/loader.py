"""`sit bench loader`: how fast this machine reads latents, beside numpy's own reading."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli.commands.bench.synthetic import WRITE_ROWS, temporary_folder, write_synthetic
from sitcli.commands.newest import newest_store
from sitcli.commands.train.feed import Feed, Order, randomness_of_step
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.events import Event, Note, Progress, Result, Stage, Table, Warn
from sitcli.latents.store import LatentStore
from sitcli.machine.seeds import Philox
from sitcli.settings.tools import BenchSettings
from sitcli.settings.train import TrainSettings
from sitcli.storage.rows import DONE
from sitcli.text import count, format_bytes, format_shape

BATCH_SIZE = 256
WARM_IMAGES, COLD_IMAGES = 65_536, 8_192  # read in a round, by each worker
PROBES = 64  # rows looked at to see whether the store is in memory
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
STUCK = 0.1  # share of them in memory from which on the figures are not those of a cold disk
# The readings in the order of measuring: a label, and what reading an image includes.
READINGS = {
    "memmap": ("numpy memmap", "array[indices]: the item's float16 row, copied"),
    "rows": ("store, rows", "LatentStore.read: as many bytes, half of the rows mirrored"),
    "batch": ("store, batch", "LatentStore.batch: + posterior drawn, float32, scaled"),
    "feed": ("training's feed", "+ order, noise, times, flips drawn for all workers; a thread"),
    "files": ("a file per image", "numpy.load of the row's .npy and of its label's, stacked"),
}


@dataclass(frozen=True)
class _Job:
    """The work of the reader processes."""

    store: Path
    files: Path | None  # latents/0000000.npy, labels/0000000.npy, ...: the first rows of the store
    num_files: int
    batch_size: int
    workers: int
    posterior: bool  # whether it is drawn from; if not, only the means are read
    cold: bool
    batches: int  # per worker and round


def bench_loader(settings: BenchSettings) -> Stage:
    """Measure reading for training beside numpy's own, in alternating rounds.

    A synthetic store is removed at the end. Raises SitError for a store that cannot be read or
    written, UsageError for options that contradict each other.
    """
    if settings.items is not None and settings.latents is not None:
        raise UsageError(
            "--items makes a store, --latents takes one", "remove --items or --latents"
        )
    if settings.cold and not hasattr(os, "posix_fadvise"):
        raise UsageError(
            "--cold needs Linux: this system cannot drop files from memory", "remove --cold"
        )
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(temporary_folder(settings.dir)))
        if settings.items is None:
            path = settings.latents or newest_store()
            if settings.latents is None:
                yield Note(f"latents: {path} (the newest complete store)")
        else:
            path = folder / "synthetic.h5"
            yield from write_synthetic(path, settings.items)
        store = LatentStore.open(path)
        if store.num_items == 0:
            raise SitError(f"{path} holds no readable image", "name another store")
        size = settings.batch_size or BATCH_SIZE
        num_files = min(settings.files, store.num_items)
        if num_files:
            yield from _write_files(folder / "files", path, num_files)
        if settings.cold:
            store.rows.sync(forget=True)  # drops the rows that were just written, too
            os.sync()
        job = _Job(
            store=path.resolve(),
            files=folder / "files",
            num_files=num_files,
            batch_size=size,
            workers=settings.workers,
            posterior=settings.posterior == "sample" and store.kind == "moments",
            cold=settings.cold,
            batches=max(1, (COLD_IMAGES if settings.cold else WARM_IMAGES) // size),
        )
        return (yield from _measure(job, store, settings.rounds))


FOLDERS = "latents", "labels"  # fast-DiT's layout of a file per image


def _write_files(folder: Path, path: Path, number: int) -> Iterator[Event]:
    # Opened for this only: the kernel does not drop pages that a process has mapped.
    store = LatentStore.open(path)
    latents, labels = (folder / name for name in FOLDERS)
    latents.mkdir(parents=True)
    labels.mkdir()
    for start in range(0, number, WRITE_ROWS):
        yield Progress(done=start, total=number, text="writing a file per image")
        stop = min(start + WRITE_ROWS, number)
        for item, row in enumerate(store.read(np.arange(start, stop)), start):
            np.save(latents / f"{item:07d}.npy", row)
            np.save(labels / f"{item:07d}.npy", store.labels[item])


def _measure(job: _Job, store: LatentStore, rounds: int) -> Stage:
    """Run the rounds; returns the result."""
    names = [name for name in READINGS if name != "files" or job.num_files]
    rates: dict[str, list[list[float]]] = {name: [] for name in names}  # by round and worker
    total, in_memory = rounds * len(names), 0.0
    with _workers(job) as pipes:
        for done in range(total):
            number, place = divmod(done, len(names))
            # Back and forth, so that a machine that slows down slows all readings alike.
            name = names[place] if number % 2 == 0 else names[-1 - place]
            label = f"{READINGS[name][0]}, round {number + 1}"
            yield Progress(done=done, total=total, unit="rounds", text=label)
            if job.cold:
                in_memory = max(in_memory, _forget(job, store))
            rates[name].append(_round(pipes, name))
    if in_memory > STUCK:
        yield Warn(
            f"{in_memory:.0%} of the rows stayed in memory although the kernel was told to drop "
            "them: these figures are not those of a cold disk (another process has the store open, "
            "or it lies in a file system in memory)"
        )
    return _result(job, store, rates, in_memory)


def _forget(job: _Job, store: LatentStore) -> float:
    """Have the kernel drop the store and the files; returns the share of rows still in memory."""
    store.rows.sync(forget=True)
    for path in job.files.glob("*/*.npy") if job.num_files else ():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    if job.num_files:
        # It drops the names and places of files only all at once, and only for root.
        with contextlib.suppress(OSError):
            DROP_CACHES.write_text("2")
    return store.rows.in_memory(
        "latents", np.linspace(0, store.rows.num_rows - 1, PROBES, dtype=int)
    )


@contextlib.contextmanager
def _workers(job: _Job) -> Iterator[list[Connection]]:
    """Processes that run `_work`, each at the other end of a pipe."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    # Ctrl-C reaches every process of the terminal; only this one answers it, and ends the others.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        try:
            for worker in range(job.workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, job, worker), daemon=True)
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
        finally:
            signal.signal(signal.SIGINT, before)
        yield pipes
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _round(pipes: list[Connection], name: str) -> list[float]:
    """Images per second of each worker, all reading at once. Raises SitError if one has died."""
    try:
        for message in (name, "go"):
            for pipe in pipes:
                pipe.send(message)
            answers = [pipe.recv() for pipe in pipes]
    except (EOFError, OSError):
        raise SitError("a reader process has died", "try fewer --workers") from None
    return answers


def _work(pipe: Connection, job: _Job, worker: int) -> None:
    """Measure what the pipe names, until it closes or this process is ended."""
    torch.set_num_threads(1)  # like the feed's thread
    # glibc returns freed memory to the kernel, page by page, until a large block has been freed.
    # In a process that trains, one has.
    np.empty(30 << 20, np.uint8)
    readings: dict[str, Callable[[], int]] = {}
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            name = pipe.recv()
            if name not in readings:
                readings[name] = OPENERS[name](job, worker)
                if not job.cold:
                    readings[name]()  # once from the disk, and into this process's page tables
            pipe.send("ready")
            pipe.recv()
            began = time.perf_counter()
            images = readings[name]()
            pipe.send(images / (time.perf_counter() - began))
            if job.cold:
                # The kernel does not drop pages that a process has mapped.
                readings.clear()
                gc.collect()


def _batches(job: _Job, worker: int, num_items: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(items, which of them are mirrored) of this worker's batches in a round."""
    order, size = Order(num_items, Philox(0)), job.batch_size
    random = np.random.default_rng(worker)
    mine = slice(worker * size, (worker + 1) * size)
    return [
        (
            order.batch(step * job.workers * size, job.workers * size)[mine],
            random.random(size) < 0.5,
        )
        for step in range(job.batches)
    ]


def _open_memmap(job: _Job, worker: int) -> Callable[[], int]:
    store = LatentStore.open(job.store)
    rows = store.rows.array("latents")
    used = slice(None) if job.posterior else slice(store.channels)
    items = np.flatnonzero(store.rows.written == DONE)
    numbers = [items[batch] for batch, _ in _batches(job, worker, store.num_items)]
    return lambda: sum(len(rows[batch, used]) for batch in numbers)


def _open_rows(job: _Job, worker: int) -> Callable[[], int]:
    store = LatentStore.open(job.store)
    batches = _batches(job, worker, store.num_items)
    flips, whole = store.has_flips, job.posterior
    return lambda: sum(
        len(store.read(items, flip=flip if flips else None, whole=whole)) for items, flip in batches
    )


def _open_batch(job: _Job, worker: int) -> Callable[[], int]:
    store = LatentStore.open(job.store)
    batches = _batches(job, worker, store.num_items)
    noise = torch.randn(job.batch_size, *store.latent_shape) if job.posterior else None
    return lambda: sum(
        len(store.batch(items, flip=flip if store.has_flips else None, noise=noise))
        for items, flip in batches
    )


def _open_feed(job: _Job, worker: int) -> Callable[[], int]:
    store, process = LatentStore.open(job.store), Flow()
    size = job.workers * job.batch_size
    mine = slice(worker * job.batch_size, (worker + 1) * job.batch_size)

    def run() -> int:
        streams = Philox(0)
        order = Order(store.num_items, streams)

        def prepare(step: int) -> tuple[torch.Tensor, ...]:
            draw = randomness_of_step(
                streams.step(step, step * size, size, mine),
                order.batch(step * size, size)[mine],
                shape=store.latent_shape,
                draw_times=process.draw_times,
                label_dropout=TrainSettings.label_dropout,
                flip=store.has_flips,
                posterior=job.posterior,
            )
            x = store.batch(draw.items, flip=draw.flip, noise=draw.posterior)
            return x, draw.t, draw.eps, draw.hide

        feed = Feed(prepare, 0, job.batches)
        try:
            return sum(len(feed.get(step)[0]) for step in range(job.batches))
        finally:
            feed.close()

    return run


def _open_files(job: _Job, worker: int) -> Callable[[], int]:
    order = np.random.default_rng(worker).permutation(job.num_files)
    latents, labels = (
        [job.files / folder / f"{number:07d}.npy" for number in order] for folder in FOLDERS
    )
    batches = [slice(at, at + job.batch_size) for at in range(0, len(order), job.batch_size)]

    def batch(part: slice) -> int:
        rows, classes = (np.stack(list(map(np.load, paths[part]))) for paths in (latents, labels))
        return min(len(rows), len(classes))

    return lambda: sum(map(batch, batches))


OPENERS = {
    "memmap": _open_memmap,
    "rows": _open_rows,
    "batch": _open_batch,
    "feed": _open_feed,
    "files": _open_files,
}


def _result(
    job: _Job, store: LatentStore, rates: dict[str, list[list[float]]], in_memory: float
) -> Result:
    raw = [sum(workers) for workers in rates["memmap"]]
    rows, readings = [], []
    for name, rounds in rates.items():
        label, includes = READINGS[name]
        totals = [sum(workers) for workers in rounds]
        median, low, high = statistics.median(totals), min(totals), max(totals)
        # The median of the rounds' ratios: within a round both were measured close together.
        ratio = statistics.median(mine / its for mine, its in zip(totals, raw, strict=True))
        row = [label, f"{median:,.0f}", f"{low:,.0f} - {high:,.0f}", f"{ratio:.3g}", includes]
        if job.workers > 1:
            row.insert(1, f"{median / job.workers:,.0f}")
        rows.append(row)
        readings.append(
            dict(
                name=name,
                includes=includes,
                images_per_second=median,
                images_per_second_per_worker=median / job.workers,
                min=low,
                max=high,
                rounds=totals,
                workers=[statistics.median(w) for w in zip(*rounds, strict=True)],
                to_memmap=ratio,
            )
        )
    header = ["reading", "images/s", "from - to", "to numpy", "an image includes"]
    if job.workers > 1:
        header[1:2] = ["a worker", "all"]
    shape = store.rows.shape("latents")[1:]
    row_bytes = 2 * int(np.prod(shape))
    memory = "from the disk" if job.cold else "from memory"
    data: dict[str, Any] = dict(
        store=str(store.path),
        items=store.num_items,
        row_bytes=row_bytes,
        flips=store.has_flips,
        posterior="sample" if job.posterior else "mode",
        batch_size=job.batch_size,
        images_a_round=job.batches * job.batch_size,
        files=job.num_files,
        cold=job.cold,
        workers=job.workers,
        readings=readings,
    )
    if job.cold:
        data["still_in_memory"] = in_memory
    return Result(
        summary={
            "store": f"{store.num_items:,} items of {format_shape(shape)} float16 "
            f"({format_bytes(row_bytes)}), {'with' if store.has_flips else 'without'} flips",
            "read": f"shuffled batches of {job.batch_size}, {memory}, "
            f"{count(job.workers, 'worker')}, {count(len(raw), 'round')} of "
            f"{job.batches * job.batch_size:,} images a worker",
        },
        tables=[Table(title="Loading latents", header=header, rows=rows)],
        data=data,
    )
