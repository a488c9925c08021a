"""``sit sample --invert``: real images to the noise they belong to, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sitcli import __version__, names
from sitcli.autoencoders.base import Autoencoder, decode_latents, encode_latents
from sitcli.commands.newest import SAMPLES
from sitcli.commands.sample import draw, pictures
from sitcli.commands.sample.job import Job as SamplingJob
from sitcli.commands.sample.job import prepare as prepare_sampling
from sitcli.commands.sample.roundtrip import (
    FIGURES,
    FORMAT_VERSION,
    GRID_BANDS,
    GRID_COLUMNS,
    SumsOfErrors,
    describe,
    result_of,
    save_roundtrip_grid,
)
from sitcli.core.ode import ADAPTIVE, ODE_STEPS
from sitcli.core.transport import Ends, ends_of, to_data, to_noise
from sitcli.errors import SitError, UsageError
from sitcli.events import Event, Note, Progress, Result, Stage
from sitcli.images.sets import kind_of, open_images
from sitcli.latents.store import LatentStore
from sitcli.machine.devices import precision_name, tune_cpu
from sitcli.machine.quiet import quiet_libraries
from sitcli.machine.world import World, number_of
from sitcli.runs.checkpoint import Checkpoint
from sitcli.runs.compatible import OWN_LABELS, check_null_class, check_same_latents, known_labels
from sitcli.samples.sample_set import FILE, SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.storage import locks
from sitcli.storage.files import hash_json, make_folder, write_json
from sitcli.text import format_bytes

# Options of drawing that have no effect with --invert.
NOT_FOR_INVERT = (
    *("labels", "seed", "noise", "show_path", "latents_only", "cfg_scale", "cfg_channels"),
    *("cfg_interval", "guide", "guide_scale", "internal_scale", "t_shift", "preset"),
    *("sde", "ddpm", "ddim", "t_start", "t_end"),
)


def invert(settings: SampleSettings) -> Stage:
    """Find the noise of the images settings.invert, draw them again from it, and compare.

    An interrupted set is made again from its first image.

    Raises UsageError for options or images that do not fit the model.
    """
    quiet_libraries()
    job = _prepare(settings)
    if settings.checkpoint is None:
        yield Note(f"checkpoint: {job.checkpoint.path} (the newest)")
    yield Note(f"images: {job.text}")
    make_folder(job.file.parent)
    with locks.lock(job.file):
        samples = _finished(job)
        if samples is not None:
            yield Note(f"all {samples.num} images are there already")
        else:
            samples = _create(job)
            try:
                yield from _fill(samples, job)
            except SitError:  # e.g. a picture cannot be read: remove the half-written set
                samples.rows.close()
                job.file.unlink(missing_ok=True)
                raise
        pictures.save_files(samples, settings)
        return result_of(samples)


def plan(settings: SampleSettings) -> Result:
    """What `invert` would do, for --dry-run; touches nothing."""
    from sitcli.model.flops import total_cost

    job = _prepare(settings)
    ode, cost = job.drawn.sampler, total_cost(job.checkpoint.config)
    evaluations = None
    if not ode.adaptive:
        evaluations = 2 * ode.steps * ODE_STEPS[ode.solver].evaluations
    height, width = job.checkpoint.image_size
    summary = {
        "checkpoint": str(job.checkpoint.path),
        "images": job.text,
        "sampler": describe(job.facts()),
        "evaluations": f"{evaluations} an image" if evaluations else f"as {ode.solver} needs",
        "cost": f"{cost.macs / 1e9:.3g} GMACs an evaluation",
        "size": format_bytes(len(job.items) * height * width * 3),
        "out": str(job.file.parent),
    }
    data = dict(job.facts(), out=str(job.file.parent), evaluations=evaluations)
    return Result(summary=summary, data=data, next="the same command without --dry-run")


class _Real(NamedTuple):
    """Images to invert.

    preparation: how they were cropped and resized, for people; identity: a hash of the images;
    labels: (N,) their classes, named by class_names. read(indices) yields pictures, uint8
    (H, W, 3); it is None for latents, which are read from `store`. first_identity: the hash that
    sets of versions up to 0.7 keep.
    """

    path: Path
    preparation: str
    num: int
    identity: str
    labels: np.ndarray
    class_names: list[str]
    read: Callable[[np.ndarray], Generator[np.ndarray, None, None]] | None = None
    store: LatentStore | None = None
    first_identity: str = ""


@dataclass(frozen=True)
class _Job:
    """Settings resolved against the checkpoint and the images."""

    drawn: SamplingJob  # the job that would draw as many images
    real: _Real
    items: np.ndarray  # (n,) numbers of the images used
    labels: np.ndarray  # (n,)
    label_policy: str
    file: Path

    @property
    def checkpoint(self) -> Checkpoint:
        return self.drawn.checkpoint

    @property
    def ends(self) -> Ends:
        """Where the ODE begins and ends."""
        return ends_of(self.checkpoint.process, self.checkpoint.loss_curve)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.checkpoint.config.latent_shape

    @property
    def text(self) -> str:
        """The images, for people."""
        num = f"{len(self.items)} of {self.real.num:,}"
        return f"{self.real.path} ({num}, {self.real.preparation}), labels: {self.label_policy}"

    @property
    def labelled(self) -> bool:
        """Whether the labels are classes, not the null class."""
        return bool((self.labels < self.checkpoint.config.num_classes).all())

    def facts(self) -> dict[str, Any]:
        """All that the figures depend on, except the batch size and the precision."""
        facts = self.drawn.facts() | dict(
            invert=str(self.real.path.resolve()),
            preparation=self.real.preparation,
            images=self.real.identity,
            num=len(self.items),
            label_policy=self.label_policy,
            interval=[self.ends.data, self.ends.noise],
        )
        return {name: value for name, value in facts.items() if name not in ("labels", "seed")}


def _prepare(settings: SampleSettings) -> _Job:
    _refuse_options(settings)
    asked = number_of(gpus=settings.gpus, procs=settings.procs)
    if (asked or World.from_environment().size) > 1:
        raise UsageError("--invert runs in one process", "remove --gpus and --procs", shared=True)
    # The error of bf16's rounding would hide the solver's.
    precision = "fp32" if settings.precision == "auto" else settings.precision
    # The ODE map has its own time steps: the run's --t-shift is not applied.
    like = dataclasses.replace(
        settings,
        invert=None,
        ode=True,
        precision=precision,
        t_shift=None if settings.solver in ADAPTIVE else "1",
    )
    drawn = prepare_sampling(like)
    checkpoint = drawn.checkpoint
    real = _open(settings.invert, checkpoint)
    num = min(drawn.settings.num, real.num)
    items = np.arange(num) * real.num // num
    labels, policy = _labels(drawn, real, items)
    job = _Job(drawn, real, items, labels, policy, drawn.file)
    if settings.out is not None:
        return job
    step, mark = checkpoint.path, hash_json(job.facts())[:6]
    name = f"{step.parent.name}-{step.name}-invert-{mark}"
    return dataclasses.replace(job, file=SAMPLES / name / FILE)


def _refuse_options(settings: SampleSettings) -> None:
    if settings.solver in set(names.ODE_SOLVERS) - set(names.MAP_SOLVERS):
        raise UsageError(
            f"--solver {settings.solver} remembers earlier steps, and only runs from noise to data",
            f"use one of {', '.join(names.MAP_SOLVERS)}",
        )
    for option in dataclasses.fields(SampleSettings):
        if option.name in NOT_FOR_INVERT and getattr(settings, option.name) != option.default:
            flag = option.name.replace("_", "-")
            raise UsageError(
                f"--{flag} has no effect with --invert, which follows the model's ODE from given "
                "images, without guidance or randomness",
                f"remove --{flag}",
            )


def _open(path: Path, checkpoint: Checkpoint) -> _Real:
    if kind_of(path) == "latent store":
        store = LatentStore.open(path)
        check_same_latents(store, checkpoint)
        facts = path, "its latents", store.num_items, store.fingerprint
        return _Real(*facts, store.labels, store.class_names, store=store)
    size = checkpoint.image_size
    images = open_images(path, size=size, crop=checkpoint.latents["crop"])
    if images.size != size:
        (height, width), (rows, columns) = images.size, size
        raise UsageError(
            f"{path} holds images of {width} x {height} pixels, and the run's are {columns} x "
            f"{rows}",
            "give a folder of pictures, which are cropped",
        )
    labels = np.zeros(images.num, np.int64) if images.labels is None else images.labels
    facts = path, images.preparation, images.num, images.fingerprint
    return _Real(
        *facts,
        labels,
        images.class_names,
        read=images.read,
        first_identity=images.first_fingerprint,
    )


def _labels(drawn: SamplingJob, real: _Real, items: np.ndarray) -> tuple[np.ndarray, str]:
    """(n,) labels, and where they come from: --classes, the images' classes, or none."""
    given = drawn.settings.classes
    if given:
        if "," in given:
            raise UsageError("--classes: --invert takes one class for all images", "name one class")
        return np.full(len(items), drawn.labels[0]), f"class {given.strip()}"
    labels, policy = known_labels(real.labels[items], real.class_names, drawn.checkpoint)
    if policy != OWN_LABELS:
        check_null_class(drawn.checkpoint, policy, "name the class of the images with --classes")
    return labels, policy


def _finished(job: _Job) -> SampleSet | None:
    """The existing set if it is complete, else None. Raises UsageError if it is another set."""
    if not job.file.exists():
        return None
    facts = job.facts() | dict(precision=precision_name(job.drawn.dtype))
    if job.real.first_identity == SampleSet.open(job.file).meta.get("images"):
        facts["images"] = job.real.first_identity
    samples = draw.open_begun(job.file, facts, how="made")
    return samples if samples.complete else None


def _create(job: _Job) -> SampleSet:
    settings = job.drawn.settings
    meta = job.facts() | dict(
        draw.facts_of_latents(job.checkpoint),
        class_names=job.checkpoint.latents["class_names"] if job.labelled else [],
        precision=precision_name(job.drawn.dtype),
        batch_size=settings.batch_size,
    )
    return SampleSet.create(
        job.file,
        # Images without a class get label 0, like those of an unconditional model.
        labels=job.labels if job.labelled else np.zeros_like(job.labels),
        seeds=np.zeros(len(job.items), np.int64),
        image_size=job.checkpoint.image_size,
        latent_shape=job.latent_shape if settings.latents else None,
        noise_shape=job.latent_shape,
        meta=meta,
    )


def _fill(samples: SampleSet, job: _Job) -> Iterator[Event]:
    checkpoint, drawn = job.checkpoint, job.drawn
    scaling = checkpoint.scaling
    tune_cpu(drawn.device)
    autoencoder, network = drawn.autoencoder(), drawn.network()
    sums, shown, total = SumsOfErrors(), [], samples.num
    yield Progress(done=0, total=total)
    for start, originals, x in _batches(job, autoencoder):
        batch = np.arange(start, start + len(x))
        y = torch.from_numpy(job.labels[batch]).to(drawn.device)
        began = network.evaluations
        process, ode, ends = checkpoint.process, drawn.sampler, job.ends
        for t, state in draw.solver_steps(drawn, to_noise(process, network, x, y, ode, ends)):
            noise = state
            yield Progress(done=start + int(len(x) * t / 2), total=total, text=f"up, t {t:.2f}")
        for t, state in draw.solver_steps(drawn, to_data(process, network, noise, y, ode, ends)):
            back, done = state, start + int(len(x) * (1 - t / 2))
            yield Progress(done=done, total=total, text=f"down, t {t:.2f}")
        if not bool(torch.isfinite(back).all() and torch.isfinite(noise).all()):
            raise SitError("the round trip is not finite", "use more --steps or --precision fp32")
        alone, again = (decode_latents(autoencoder, z, scaling).numpy() for z in (x, back))
        sums.add(x, noise, back, originals, alone, again)
        kept = {"latents": back.float().cpu().numpy()} if "latents" in samples.rows.names else {}
        spent, found = network.evaluations - began, noise.float().cpu().numpy()
        samples.write(batch, evaluations=spent, images=again, noise=found, **kept)
        if start < GRID_BANDS * GRID_COLUMNS:
            shown.append((originals, alone, again))
    save_roundtrip_grid(samples.beside("grid.png"), shown)
    document = {"format_version": FORMAT_VERSION, "sit_version": __version__, **samples.meta}
    write_json(samples.beside(FIGURES), document | dict(figures=sums.figures()))
    samples.finish()


def _batches(
    job: _Job, autoencoder: Autoencoder
) -> Iterator[tuple[int, np.ndarray | None, Tensor]]:
    """(first row, pictures uint8 (B, H, W, 3) if there are any, latents (B, C, h, w))."""
    size, device = job.drawn.settings.batch_size, job.drawn.device
    reader = job.real.read(job.items) if job.real.read else None
    for start in range(0, len(job.items), size):
        items = job.items[start : start + size]
        if reader is None:
            yield start, None, job.real.store.batch(items).to(device)
        else:
            originals = np.stack([next(reader) for _ in items])
            yield start, originals, encode_latents(autoencoder, originals, job.checkpoint.scaling)
