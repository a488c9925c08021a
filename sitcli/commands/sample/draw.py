"""Creates or opens the sample set, and draws the images it lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sitcli.autoencoders.base import decode_latents
from sitcli.commands.sample.job import Job
from sitcli.commands.sample.pictures import PATH_ROWS, save_path
from sitcli.commands.sample.sampler import as_recorded
from sitcli.core.guidance import GuidedNetwork
from sitcli.errors import SitError, UsageError
from sitcli.events import Progress
from sitcli.machine.devices import autocast, precision_name, resolve_precision
from sitcli.machine.ranks import all_agree, wait_for_all
from sitcli.machine.world import World
from sitcli.model.compile import resolve_compile
from sitcli.runs.checkpoint import Checkpoint
from sitcli.samples.sample_set import SampleSet


def open_or_create(job: Job) -> SampleSet:
    """The job's sample set. Raises UsageError if it exists and was drawn with other options."""
    settings = job.settings
    if job.file.exists():
        return open_begun(job.file, job.facts(), how="drawn")
    meta = job.facts() | dict(
        facts_of_latents(job.checkpoint),
        class_names=job.checkpoint.latents["class_names"],
        precision=precision_name(job.dtype),
        batch_size=settings.batch_size,
        compiled=job.compiled,
        interval=job.sampler.interval,
        streams=job.streams_name,
    )
    keep = settings.latents or settings.latents_only
    return SampleSet.create(
        job.file,
        labels=job.labels,
        seeds=np.full(settings.num, settings.seed, np.int64),
        image_size=None if settings.latents_only else job.checkpoint.image_size,
        latent_shape=job.checkpoint.config.latent_shape if keep else None,
        meta=meta,
    )


def open_begun(file: Path, facts: dict[str, Any], *, how: str) -> SampleSet:
    """The sample set in `file`, which exists, for writing; how: "drawn" or "made", for the error.

    Raises UsageError naming the first of the facts that its meta contradicts.
    """
    samples = SampleSet.open(file, writable=True)
    check_begun(samples, facts, how=how)
    return samples


def check_begun(samples: SampleSet, facts: dict[str, Any], *, how: str) -> None:
    """Raise UsageError naming the first of the facts that the set's meta contradicts."""
    for key, value in facts.items():
        if samples.meta.get(key) != value:
            raise UsageError(
                f"{samples.path} was {how} with {key} {samples.meta.get(key)}, not {value}",
                f"name another --out, or remove {samples.path}",
            )


def facts_of_latents(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where the latents of a run came from, for the meta of its samples."""
    latents = checkpoint.latents
    return dict(
        store=latents["store"],
        stores=latents.get("stores", [latents["store"]]),
        source=latents["source"],
        image_size=latents["image_size"],
        crop=latents["crop"],
    )


def as_begun(job: Job, samples: SampleSet) -> Job:
    """Resume with the set's precision, compilation, interval of time, labels and random streams.

    `auto` may resolve differently on another day, and an older version drew from other streams.
    Raises UsageError if the job asks for another precision or compilation.
    """
    begun = samples.meta["precision"]
    if job.settings.precision not in ("auto", begun):
        raise UsageError(
            f"{job.file} was drawn in {begun}, not {job.settings.precision}", "name another --out"
        )
    compiled = "on" if samples.meta.get("compiled") else "off"
    if job.settings.compile not in ("auto", compiled):
        raise UsageError(
            f"{job.file} was drawn with --compile {compiled}",
            "remove --compile, or name another --out",
        )
    return dataclasses.replace(
        job,
        dtype=resolve_precision(begun, job.device),
        compiled=resolve_compile(compiled, job.device, flops=None),
        sampler=as_recorded(job.sampler, samples.meta.get("interval"), job.checkpoint.process),
        labels=samples.labels,
        streams_name=samples.streams_name,
    )


def missing_batches(samples: SampleSet, job: Job) -> list[np.ndarray]:
    """The batches, as image numbers, of which an image is missing.

    They are drawn whole: the bits of an image can depend on the batch it is computed in.
    """
    size, done = samples.meta["batch_size"], samples.done
    batches = [np.arange(a, min(a + size, samples.num)) for a in range(0, samples.num, size)]
    wants_path = job.settings.show_path and not samples.beside("path.png").exists()
    return [b for i, b in enumerate(batches) if not done[b].all() or (wants_path and i == 0)]


def fill(
    samples: SampleSet,
    job: Job,
    missing: list[np.ndarray],
    world: World,
    check_peers: Callable[[], None],
) -> Iterator[Progress]:
    """Draw this rank's share of the missing batches, and wait for the other ranks.

    Raises SitError if a result is not finite.
    """

    def progress(part: int = 0, text: str = "") -> Progress:
        done = int(samples.done.sum()) + part
        return Progress(done=min(done, samples.num), total=samples.num, text=text)

    yield progress()
    mine = missing[world.rank :: world.size]
    only = job.settings.latents_only
    parts = all_agree(
        world, lambda: (None if only else job.autoencoder(), job.network()) if mine else None
    )
    for batch in mine:
        autoencoder, network = parts
        began = network.evaluations
        frames: list[tuple[float, Tensor]] = []
        x = None
        for t, x in _trajectory(job, network, batch):
            if job.settings.show_path and batch[0] == 0:
                frames.append((t, x[:PATH_ROWS].clone()))
            yield progress(int(len(batch) * (1 - t)), f"t {t:.2f}")
            check_peers()
        if not bool(torch.isfinite(x).all()):
            raise SitError(
                "the sampler's result is not finite",
                "use --precision fp32, more --steps, or another sampler",
            )
        kept = {"latents": x.float().cpu().numpy()} if "latents" in samples.rows.names else {}
        if autoencoder is not None:
            kept["images"] = decode_latents(autoencoder, x, job.checkpoint.scaling).numpy()
        samples.write(batch, evaluations=network.evaluations - began, **kept)
        if frames:
            save_path(samples, job, autoencoder, frames)
        yield progress()
    for _ in wait_for_all(world):
        yield progress()
        check_peers()
    yield progress()


def _trajectory(
    job: Job, network: GuidedNetwork, batch: np.ndarray
) -> Iterator[tuple[float, Tensor]]:
    """Yield (t, x_t) of the images `batch` from t = 1 down; image i depends on (seed, i) alone."""
    shape = job.checkpoint.config.latent_shape
    random = job.streams.samples(batch)

    def randn() -> Tensor:
        return random.normal(*shape).to(job.device)

    y = torch.from_numpy(job.labels[batch]).to(job.device)
    noise = randn()  # drawn even if --noise gives it, so that later draws are the same
    if job.noise is not None:
        noise = job.noise.rows(batch).to(job.device)
    yield 1.0, noise
    steps = job.checkpoint.process.sample(network, noise, y, job.sampler, randn=randn)
    yield from solver_steps(job, steps)


def solver_steps(job: Job, steps: Iterator[tuple[float, Tensor]]) -> Iterator[tuple[float, Tensor]]:
    """Yield a solver's steps (t, x_t), each computed under autocast and without gradients.

    The caller's code between two steps runs outside both. Raises SitError if the solver fails.
    """
    while True:
        with torch.no_grad(), autocast(job.device, job.dtype):
            try:
                step = next(steps, None)
            except ArithmeticError as error:
                raise SitError(str(error), "use a larger --rtol, or --solver heun") from None
        if step is None:
            return
        yield step
