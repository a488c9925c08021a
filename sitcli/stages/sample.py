"""`sit sample`: a checkpoint to a sample set."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sitcli import names
from sitcli.core.ddpm import NUM_STEPS, Ddim, Ddpm, Diffusion
from sitcli.core.flow import Flow, Network, Ode, Sde
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.wt import DEFAULT_ETA, wt_of
from sitcli.errors import SitError, UsageError
from sitcli.events import Note, Progress, Result, Stage
from sitcli.io import find, rows
from sitcli.io.autoencoder import Autoencoder, decode_latents, from_spec
from sitcli.io.checkpoint import Checkpoint, RunDir, open_checkpoint
from sitcli.io.compile import CompiledNetwork, resolve_compile
from sitcli.io.files import hash_json, make_folder, replacing
from sitcli.io.launch import (
    autocast,
    generator,
    precision_name,
    quiet_libraries,
    resolve_device,
    resolve_precision,
    tune_cpu,
)
from sitcli.io.noise import Noise, open_noise
from sitcli.io.pictures import save_grid
from sitcli.io.processes import World, device_name, planned_size, world_for
from sitcli.io.ranks import from_first, meeting, together, until_all, watching
from sitcli.io.recipe import parse_shift
from sitcli.io.samples import FILE, SampleSet, file_of
from sitcli.settings import SampleSettings
from sitcli.text import count, format_bytes

Sampler = Ode | Sde | Ddpm | Ddim
LEAVE = "leave it out"
NUM = 64
GUIDE_SCALE = 2.0
GRID_ROWS, GRID_COLUMNS = 10, 10
PATH_ROWS, PATH_COLUMNS = 6, 10
# How the images are computed or stored; anything else in the settings decides what they show.
FREE = (
    "out", "batch_size", "device", "gpus", "procs", "png", "npz", "show_path", "vae", "precision",
    "checkpoint", "preset", "compile",
)  # fmt: skip


def sample(settings: SampleSettings) -> Stage:
    """Draw settings.num images, going on with the missing ones of an interrupted set.

    Of several processes each draws every W-th of the missing batches; the first alone creates the
    set and finishes it.

    Raises UsageError for options that do not fit the checkpoint or the set.
    """
    quiet_libraries()
    world = world_for(gpus=settings.gpus, procs=settings.procs)
    with contextlib.ExitStack() as held:
        with meeting(world):
            # A training run may save its next step while we look: one rank decides for all.
            newest = from_first(world, lambda: _checkpoint(settings).path)
            job = together(world, lambda: prepare(dataclasses.replace(settings, checkpoint=newest)))
            if settings.checkpoint is None:
                yield Note(f"checkpoint: {newest} (the newest)")

            def begin() -> list[np.ndarray]:
                make_folder(job.file.parent)
                held.enter_context(rows.lock(job.file))
                samples = held.enter_context(_open_or_create(job).rows)
                return _missing_batches(SampleSet(samples), job)

            missing = from_first(world, begin)
            samples = together(world, lambda: SampleSet.open(job.file, writable=True))
            held.enter_context(samples.rows)
            job = together(world, lambda: _as_begun(job, samples))
            if samples.complete and not missing:
                yield Note(f"all {samples.num} images are there already")
            else:
                before = int(samples.done.sum())
                if 0 < before < samples.num:
                    yield Note(f"going on: {before} of {samples.num} images are there")
                tune_cpu(job.device)
                with watching(world) as check_peers:
                    yield from _fill(samples, job, missing, world, check_peers)
        if world.rank:
            return Result()
        if not samples.complete or missing:
            samples.finish()
        _export(samples, job)
        return _result(samples, job)


def plan(settings: SampleSettings) -> Result:
    """What `sample` would do; touches nothing."""
    from sitcli.model.flops import total_cost

    job = prepare(settings)
    cost, s = total_cost(job.checkpoint.config), job.settings
    planned = _planned_evaluations(job)
    evaluations = planned and planned[0]
    height, width = job.checkpoint.image_size
    facts = job.facts()
    processes = planned_size(gpus=s.gpus, procs=s.procs)
    summary = {
        "checkpoint": str(job.checkpoint.path),
        "model": f"{job.checkpoint.meta['model']}, {cost.params / 1e6:.1f} M parameters",
        "sampler": _describe(facts),
        "evaluations": _evaluations_text(planned),
        "cost": f"{cost.macs * evaluations * s.num / 1e12:.3g} TMACs"
        if evaluations
        else f"{cost.macs / 1e9:.3g} GMACs an evaluation",
        "labels": _labels_text(facts),
        "images": f"{s.num}, latents alone"
        if s.latents_only
        else f"{s.num}, {width} x {height}, {format_bytes(s.num * height * width * 3)}",
        "processes": str(processes),
        "out": str(job.file.parent),
    }
    data = dict(
        facts,
        processes=processes,
        out=str(job.file.parent),
        params=cost.params,
        gmacs=cost.macs / 1e9,
        evaluations=evaluations,
    )
    return Result(summary=summary, data=data, next="the same command without --dry-run")


@dataclass(frozen=True)
class Job:
    """Settings resolved against the checkpoint."""

    settings: SampleSettings
    checkpoint: Checkpoint
    sampler: Sampler
    labels: np.ndarray  # (N,) int64
    noise: Noise | None
    device: torch.device
    dtype: torch.dtype
    file: Path
    guide: Checkpoint | None = None
    compiled: bool = False

    def facts(self) -> dict[str, Any]:
        """What the figures of these images must be published with."""
        s = self.settings
        facts: dict[str, Any] = dict(
            checkpoint=str(self.checkpoint.path.resolve()),
            step=self.checkpoint.step,
            model=self.checkpoint.meta["model"],
            process=self.checkpoint.meta["process"],
            weights=s.weights,
            ema=self.checkpoint.meta["ema"] if s.weights == "ema" else None,
            num=s.num,
            seed=s.seed,
            labels=s.labels,
            classes=s.classes,
            mode=mode_of(s),
            cfg_scale=s.cfg_scale,
            cfg_channels=s.cfg_channels or "all",
            latents_kept=s.latents or s.latents_only,
            noise=None if self.noise is None else self.noise.hash,
            latents_only=s.latents_only or None,
            **guidance_facts(s, self.guide),
        )
        values = {name: getattr(s, name) for name in ALL_OPTIONS}
        return facts | {name: value for name, value in values.items() if value is not None}

    def autoencoder(self) -> Autoencoder:
        """The one the model's latents are of."""
        return from_spec(
            self.checkpoint.latents["autoencoder"],
            self.checkpoint.autoencoder_arrays(),
            override=self.settings.vae,
            device=self.device,
            dtype=self.dtype,
        )

    def network(self) -> GuidedNetwork:
        """The checkpoint's network under the guidance that was asked for."""
        s = self.settings
        network = self.checkpoint.network(s.weights, self.device, dtype=self.dtype)
        two_headed = network.two_headed if s.internal_scale != 1 else None
        guide = None
        if self.guide is not None:
            guide = self.guide.network(s.weights, self.device, dtype=self.dtype)
        if self.compiled:
            batch = min(s.batch_size, s.num)
            sizes = {batch if s.cfg_scale == 1 else 2 * batch}
            if s.cfg_interval is not None:  # outside it, the conditional half alone
                sizes.add(batch)
            network = CompiledNetwork(network, self.device, sizes=sizes)
            if two_headed is not None:
                two_headed = CompiledNetwork(two_headed, self.device, sizes=sizes)
            if guide is not None:
                guide = CompiledNetwork(guide, self.device, sizes={batch})
        return GuidedNetwork(network, self.guidance(guide), two_headed=two_headed)

    def guidance(self, guide: Network | None) -> Guidance:
        """What was asked for, with this network as the guide."""
        s = self.settings
        return Guidance(
            null_class=self.checkpoint.config.null_class,
            scale=s.cfg_scale,
            channels=3 if s.cfg_channels == "3" else None,
            interval=parse_interval(s.cfg_interval) if s.cfg_interval else None,
            guide=guide,
            guide_scale=s.guide_scale if self.guide is not None else 1.0,
            internal_scale=s.internal_scale,
            time_of=self.checkpoint.process.time_of,
        )


def guidance_facts(s: SampleSettings, guide: Checkpoint | None) -> dict[str, Any]:
    """What there is beside plain classifier-free guidance."""
    facts: dict[str, Any] = {}
    if s.cfg_interval is not None:
        facts["cfg_interval"] = list(parse_interval(s.cfg_interval))
    if guide is not None:
        facts |= dict(guide=str(guide.path.resolve()), guide_scale=s.guide_scale)
    if s.internal_scale != 1:
        facts["internal_scale"] = s.internal_scale
    return facts


def parse_interval(text: str) -> tuple[float, float]:
    """'0,0.7' -> (0.0, 0.7). UsageError unless 0 <= LO < HI <= 1."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not 0 <= low < high <= 1:
        raise UsageError(
            f"--cfg-interval {text}: LO,HI are times t with 0 <= LO < HI <= 1",
            "e.g. --cfg-interval 0,0.7",
        )
    return low, high


def prepare(settings: SampleSettings) -> Job:
    """Check everything that can be checked before anything is written."""
    checkpoint = _checkpoint(settings)
    settings = resolve(settings, checkpoint)
    noise = None
    if settings.noise is not None:
        noise = open_noise(settings.noise, checkpoint.config.latent_shape)
        if settings.num not in (None, noise.num):
            raise UsageError(
                f"--num {settings.num}: {settings.noise} holds {noise.num} images' noise",
                "leave out --num",
            )
    num = noise.num if noise is not None else settings.num or NUM
    settings = dataclasses.replace(settings, num=num)
    _check_latents_only(settings)
    device = resolve_device(device_name(settings.device, gpus=settings.gpus, procs=settings.procs))
    dtype = resolve_precision(settings.precision, device)
    sampler = _sampler(settings, checkpoint)
    if settings.cfg_scale != 1 and checkpoint.config.num_classes == 0:
        raise UsageError("--cfg-scale needs classes, and this model is unconditional", LEAVE)
    if settings.cfg_scale != 1 and checkpoint.meta.get("label_dropout") == 0:
        raise UsageError(
            "--cfg-scale needs the unconditional output, which --label-dropout 0 never trained",
            LEAVE,
        )
    guide = _guide(settings, checkpoint)
    if settings.internal_scale != 1 and not checkpoint.config.aux_block:
        raise UsageError(
            f"--internal-scale: {checkpoint.path} has no second head",
            "train with --internal-guidance 0.5",
        )
    labels = _labels(settings, checkpoint)
    file = _out_file(settings, checkpoint, noise)
    job = Job(settings, checkpoint, sampler, labels, noise, device, dtype, file, guide)
    compiled = resolve_compile(settings.compile, device, flops=_planned_flops(job))
    return dataclasses.replace(job, compiled=compiled)


def _planned_flops(job: Job) -> float | None:
    """Operations of all images, None where the solver decides; a guide counts as the network."""
    from sitcli.model.flops import total_cost

    planned = _planned_evaluations(job)
    return planned and 2 * total_cost(job.checkpoint.config).macs * planned[0] * job.settings.num


def _guide(settings: SampleSettings, checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint of --guide. UsageError for one that predicts something else."""
    if settings.guide is None:
        return None
    guide = open_checkpoint(settings.guide)
    pairs = {
        "latents": (checkpoint.config.latent_shape, guide.config.latent_shape),
        "classes": (checkpoint.config.num_classes, guide.config.num_classes),
        "autoencoder": (_autoencoder_hash(checkpoint), _autoencoder_hash(guide)),
        "scaling": (checkpoint.latents["scaling"], guide.latents["scaling"]),
        "path": _paths(checkpoint.process, guide.process),
        "prediction": (checkpoint.process.prediction, guide.process.prediction),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UsageError(
                f"--guide {settings.guide} has other {what} than {checkpoint.path}: {theirs}, not "
                f"{ours}",
                "a guide is trained on the same latents with the same process",
            )
    if guide.path.resolve() == checkpoint.path.resolve():
        raise UsageError(
            f"--guide {settings.guide} is the checkpoint itself",
            "name an earlier step, or a smaller run",
        )
    return guide


def _autoencoder_hash(checkpoint: Checkpoint) -> str:
    return checkpoint.latents["autoencoder"]["hash"]


def _paths(*processes: Flow) -> tuple[str, ...]:
    return tuple(f"{p.interpolant} {getattr(p, 'betas', '')}".strip() for p in processes)


def _check_latents_only(settings: SampleSettings) -> None:
    for name in ("png", "npz", "show_path", "vae"):
        if settings.latents_only and getattr(settings, name):
            flag = name.replace("_", "-")
            raise UsageError(f"--latents-only decodes no images, which --{flag} is about", LEAVE)


def _checkpoint(settings: SampleSettings) -> Checkpoint:
    return open_checkpoint(settings.checkpoint or find.newest_run())


# No mark where they are not used: sets of older versions keep their names.
NEWER = (
    "noise",
    "latents_only",
    "cfg_interval",
    "guide",
    "guide_scale",
    "internal_scale",
    "t_shift",
)

# A mode's options and their defaults; it refuses every other one of these.
OPTIONS: dict[str, dict[str, Any]] = {
    "ode": dict(solver="heun", steps=50, t_shift=None),
    "sde": dict(
        solver="euler-maruyama",
        steps=250,
        t_shift=None,
        wt="sigma",
        wt_scale=1.0,
        last_step="mean",
        last_step_size=0.04,
    ),
    "ddpm": dict(steps=250),
    "ddim": dict(steps=50, eta=0.0),
}
# What a choice of a mode adds to its options, or takes away (None).
CHOICES: dict[tuple[str, str], dict[str, Any]] = {
    ("solver", "dopri5"): dict(rtol=1e-5, atol=1e-5, steps=None, t_shift=None),
    ("wt", "kl-eta"): dict(eta=DEFAULT_ETA),
    ("last_step", "none"): dict(last_step_size=None),
}
ALL_OPTIONS = sorted(
    {name for table in (OPTIONS, CHOICES) for row in table.values() for name in row}
)
SOLVERS = {"ode": names.ODE_SOLVERS, "sde": names.SDE_SOLVERS}


def mode_of(settings: SampleSettings) -> str | None:
    """The one of ode, sde, ddpm, ddim that was asked for. UsageError for two of them."""
    asked = [mode for mode in OPTIONS if getattr(settings, mode)]
    if len(asked) > 1:
        raise UsageError(f"--{asked[0]} and --{asked[1]} are two samplers", "give one of them")
    return asked[0] if asked else None


def resolve(settings: SampleSettings, checkpoint: Checkpoint) -> SampleSettings:
    """Fill in the sampler and its defaults; UsageError for options that it does not have."""
    discrete = isinstance(checkpoint.process, Diffusion)
    mode = mode_of(settings) or ("ddpm" if discrete else "ode")
    if mode in ("ddpm", "ddim") and not discrete:
        raise UsageError(
            f"--{mode} walks the chain of a DiT model, and {checkpoint.path} is a SiT model",
            "--ode or --sde",
        )
    given = {name: getattr(settings, name) for name in ALL_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    options = OPTIONS[mode] | {k: v for k, v in given.items() if k in OPTIONS[mode]}
    if options.get("solver", "") not in SOLVERS.get(mode, ("",)):
        choices = ", ".join(SOLVERS[mode])
        raise UsageError(f"--solver {options['solver']} is not for --{mode}", f"one of {choices}")
    choice = ""
    for (name, value), more in CHOICES.items():
        if options.get(name) == value:
            choice += f" --{name.replace('_', '-')} {value}"
            options = {k: v for k, v in options.items() if k not in more or more[k] is not None}
            options |= {k: given.get(k, v) for k, v in more.items() if v is not None}
    for name in given.keys() - options.keys():
        flag, hint = name.replace("_", "-"), "leave it out"
        if name not in OPTIONS[mode]:
            hint += _owners(name)
        raise UsageError(f"--{flag} means nothing to --{mode}{choice}", hint)
    if "t_shift" in options:
        options["t_shift"] = _shift(settings, checkpoint)
    return dataclasses.replace(
        settings, **{mode: True}, **options, **_resolve_guidance(settings, checkpoint)
    )


def _shift(settings: SampleSettings, checkpoint: Checkpoint) -> str | None:
    """What was asked for, or the training's; None where that is 1."""
    if settings.t_shift is None:
        shift = float(checkpoint.meta.get("t_shift", 1))
    else:
        shift = parse_shift(settings.t_shift, checkpoint.config.latent_shape)
    return None if shift == 1 else f"{shift:.6g}"


def _resolve_guidance(settings: SampleSettings, checkpoint: Checkpoint) -> dict[str, Any]:
    """Guided channels and the guide's scale. UsageError for options without their guidance."""
    s = settings
    guided = s.cfg_scale != 1 or s.guide is not None or s.internal_scale != 1
    if s.cfg_interval is not None:
        parse_interval(s.cfg_interval)
    for name, there, of in (
        ("cfg_channels", guided, "guidance: e.g. --cfg-scale 1.5"),
        ("cfg_interval", s.cfg_scale != 1, "--cfg-scale: e.g. --cfg-scale 1.5"),
        ("guide_scale", s.guide is not None, "--guide"),
    ):
        if getattr(s, name) is not None and not there:
            what, _, hint = of.partition(": ")
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} means nothing without {what}", hint or LEAVE)
    usual = checkpoint.meta.get("guided_channels", "all")
    scale = None
    if s.guide is not None:
        scale = GUIDE_SCALE if s.guide_scale is None else s.guide_scale
    return dict(cfg_channels=(s.cfg_channels or usual) if guided else None, guide_scale=scale)


def _owners(name: str) -> str:
    owners = [f"--{mode}" for mode, options in OPTIONS.items() if name in options]
    owners += [f"--{k.replace('_', '-')} {v}" for (k, v), more in CHOICES.items() if more.get(name)]
    return f"; it is an option of {' or '.join(owners)}" if owners else ""


def _sampler(s: SampleSettings, checkpoint: Checkpoint) -> Sampler:
    if s.ode and s.solver == "dopri5":
        return Ode(solver=s.solver, rtol=s.rtol, atol=s.atol)
    shift = float(s.t_shift or 1)
    if s.ode:
        return Ode(solver=s.solver, steps=s.steps, shift=shift)
    if s.ddpm or s.ddim:
        if s.steps > NUM_STEPS:
            raise UsageError(
                f"--steps {s.steps}: the chain has {NUM_STEPS} steps", f"at most {NUM_STEPS}"
            )
        if s.ddim and s.eta > 1:
            raise UsageError(f"--eta {s.eta:g}: DDIM's eta is at most 1", "--eta 1 is DDPM's noise")
        return Ddpm(steps=s.steps) if s.ddpm else Ddim(steps=s.steps, eta=s.eta)
    if s.last_step_size == 0:
        raise UsageError("--last-step-size 0 leaves no last step", "use --last-step none")
    curve = checkpoint.loss_curve if s.wt == "kl-eta" else None
    try:
        w = wt_of(s.wt, scale=s.wt_scale, eta=s.eta or 0.0, loss_curve=curve)
    except ValueError as error:
        hint = "--eta 0.1, say" if s.eta == 0 else "use another --wt"
        raise UsageError(f"--wt {s.wt}: {error}", hint) from None
    return Sde(
        w=w,
        wt=s.wt,
        solver=s.solver,
        steps=s.steps,
        last_step=s.last_step,
        last_step_size=s.last_step_size or 0.0,
        shift=shift,
    )


def _labels(s: SampleSettings, checkpoint: Checkpoint) -> np.ndarray:
    """The label of each image, (N,); a function of the settings alone."""
    num_classes = checkpoint.config.num_classes
    if num_classes == 0:
        if s.classes is not None or s.labels != "balanced":
            flag = "classes" if s.classes is not None else "labels"
            raise UsageError(f"--{flag}: this model is unconditional", LEAVE)
        return np.zeros(s.num, np.int64)
    classes = np.arange(num_classes)
    if s.classes is not None:
        classes = np.array(
            _parse_classes(s.classes, num_classes, checkpoint.latents["class_names"])
        )
    if s.labels == "balanced":
        return classes[np.arange(s.num) % len(classes)]
    picks = [
        int(torch.randint(len(classes), (), generator=generator(s.seed, "label", i)))
        for i in range(s.num)
    ]
    return classes[picks]


def _parse_classes(text: str, num_classes: int, class_names: list[str]) -> list[int]:
    """'207,goldfish' -> class numbers. UsageError for what is neither a number nor a name."""
    import difflib

    classes = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if word in class_names:
            classes.append(class_names.index(word))
        elif word.isdecimal():
            if int(word) >= num_classes:
                raise UsageError(f"--classes: there is no class {word}", f"0 to {num_classes - 1}")
            classes.append(int(word))
        else:
            close = difflib.get_close_matches(word, class_names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"e.g. {', '.join(class_names[:5])}"
            raise UsageError(f"--classes: no class is called '{word}'", hint)
    if not classes:
        raise UsageError("--classes names no class", "e.g. --classes 0,1")
    return classes


def _out_file(s: SampleSettings, checkpoint: Checkpoint, noise: Noise | None) -> Path:
    if s.out is not None:
        if s.out.suffix == ".h5" and s.out.is_dir():
            raise UsageError(f"{s.out} is a folder", "name a file that is none, or a folder")
        run = RunDir(s.out)
        if run.config.exists() or run.steps():
            raise UsageError(f"{s.out} is a run", "samples take a folder of their own")
        return file_of(s.out)
    kept = {k: v for k, v in dataclasses.asdict(s).items() if k not in (*FREE, *NEWER)}
    kept |= {"noise": noise.hash} if noise is not None else {}
    for name in NEWER[1:]:
        value, default = getattr(s, name), getattr(SampleSettings, name)
        kept |= {name: str(value)} if value not in (default, False) else {}
    mark = hash_json([kept, str(checkpoint.path.resolve())])[:6]
    name = f"{checkpoint.path.parent.name}-{checkpoint.path.name}-{mark}"
    return find.SAMPLES / name / FILE


def _open_or_create(job: Job) -> SampleSet:
    latents, settings = job.checkpoint.latents, job.settings
    if job.file.exists():
        samples = SampleSet.open(job.file, writable=True)
        for key, value in job.facts().items():
            if samples.meta.get(key) != value:
                raise UsageError(
                    f"{job.file} was drawn with {key} {samples.meta.get(key)}, not {value}",
                    "name another --out, or remove it",
                )
        return samples
    meta = job.facts() | dict(
        store=latents["store"],
        stores=latents.get("stores", [latents["store"]]),
        source=latents["source"],
        image_size=latents["image_size"],
        crop=latents["crop"],
        class_names=latents["class_names"],
        precision=precision_name(job.dtype),
        batch_size=settings.batch_size,
        compiled=job.compiled,
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


def _as_begun(job: Job, samples: SampleSet) -> Job:
    """A set keeps the precision it was begun in, and whether the network is compiled: what is
    behind `auto` may fall out otherwise."""
    begun = samples.meta["precision"]
    if job.settings.precision not in ("auto", begun):
        raise UsageError(
            f"{job.file} was drawn in {begun}, not {job.settings.precision}", "name another --out"
        )
    compiled = "on" if samples.meta.get("compiled") else "off"
    if job.settings.compile not in ("auto", compiled):
        raise UsageError(
            f"{job.file} was drawn with --compile {compiled}",
            "leave --compile out, or name another --out",
        )
    return dataclasses.replace(
        job,
        dtype=resolve_precision(begun, job.device),
        compiled=resolve_compile(compiled, job.device, flops=None),
    )


def _missing_batches(samples: SampleSet, job: Job) -> list[np.ndarray]:
    """Whole batches with an image missing: always the same batches, so always the same bits."""
    size, done = samples.meta["batch_size"], samples.done
    batches = [np.arange(a, min(a + size, samples.num)) for a in range(0, samples.num, size)]
    wants_path = job.settings.show_path and not samples.beside("path.png").exists()
    return [b for i, b in enumerate(batches) if not done[b].all() or (wants_path and i == 0)]


def _fill(
    samples: SampleSet,
    job: Job,
    missing: list[np.ndarray],
    world: World,
    check_peers: Callable[[], None],
) -> Iterator[Progress]:
    """Draw this rank's share of the missing batches, and wait for the others."""

    def progress(part: int = 0, text: str = "") -> Progress:
        done = int(samples.done.sum()) + part
        return Progress(done=min(done, samples.num), total=samples.num, text=text)

    yield progress()
    mine = missing[world.rank :: world.size]
    only = job.settings.latents_only
    parts = together(
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
            scaling = job.checkpoint.latents["scaling"]
            kept["images"] = decode_latents(autoencoder, x, scaling).numpy()
        samples.write(batch, evaluations=network.evaluations - began, **kept)
        if frames:
            _save_path(samples, job, autoencoder, frames)
        yield progress()
    for _ in until_all(world):
        yield progress()
        check_peers()
    yield progress()


def _trajectory(
    job: Job, network: GuidedNetwork, batch: np.ndarray
) -> Iterator[tuple[float, Tensor]]:
    """(t, x_t) from t = 1 on, for the images `batch`; image i depends on (seed, i) alone."""
    shape = job.checkpoint.config.latent_shape
    random = [generator(job.settings.seed, "image", int(i)) for i in batch]

    def randn() -> Tensor:
        return torch.stack([torch.randn(shape, generator=r) for r in random]).to(job.device)

    y = torch.from_numpy(job.labels[batch]).to(job.device)
    noise = randn()  # where it is given too, so that what is drawn later is the same
    if job.noise is not None:
        noise = job.noise.rows(batch).to(job.device)
    yield 1.0, noise
    steps = job.checkpoint.process.sample(network, noise, y, job.sampler, randn=randn)
    yield from solver_steps(job, steps)


def solver_steps(job: Job, steps: Iterator[tuple[float, Tensor]]) -> Iterator[tuple[float, Tensor]]:
    """A solver's steps: it alone runs under autocast and without gradients, not who reads them."""
    while True:
        with torch.no_grad(), autocast(job.device, job.dtype):
            try:
                step = next(steps, None)
            except ArithmeticError as error:
                raise SitError(str(error), "use a larger --rtol, or --solver heun") from None
        if step is None:
            return
        yield step


def _save_path(
    samples: SampleSet, job: Job, autoencoder: Autoencoder, frames: list[tuple[float, Tensor]]
) -> None:
    """path.png: an image a row, x_t decoded at about equally spaced times from t = 1 down."""
    picks = np.unique(np.linspace(0, len(frames) - 1, PATH_COLUMNS).round().astype(int))
    columns = [
        decode_latents(autoencoder, frames[i][1], job.checkpoint.latents["scaling"]).numpy()
        for i in picks
    ]
    images = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    save_grid(samples.beside("path.png"), images, columns=len(picks))


def _export(samples: SampleSet, job: Job) -> None:
    """grid.png, and what was asked for beside it; of latents alone nothing."""
    if samples.images is None:
        return
    class_names = samples.meta["class_names"]
    images, columns, labels = _grid(samples, class_names)
    save_grid(samples.beside("grid.png"), images, columns=columns, row_labels=labels)
    save_files(samples, job.settings)


def save_files(samples: SampleSet, settings: SampleSettings) -> None:
    """samples.npz and png/, if they were asked for."""
    if settings.npz:
        path = samples.beside("samples.npz")
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, arr_0=samples.images)
    if settings.png:
        from PIL import Image

        folder = samples.beside("png")
        folder.mkdir(exist_ok=True)
        for i, image in enumerate(samples.images):
            path = folder / f"{i:06d}.png"
            if not path.exists():
                with replacing(path, durable=False) as temporary:
                    Image.fromarray(image).save(temporary, format="png")


def _grid(samples: SampleSet, class_names: list[str]) -> tuple[np.ndarray, int, list[str] | None]:
    """Images, columns and row labels of the grid: a class a row where classes have several."""
    if not class_names or np.bincount(samples.labels).max() < 2:
        shown = min(samples.num, GRID_ROWS * GRID_COLUMNS)
        return samples.images[:shown], max(1, math.isqrt(shown)), None
    classes = list(dict.fromkeys(samples.labels.tolist()))[:GRID_ROWS]
    members = [np.flatnonzero(samples.labels == c)[:GRID_COLUMNS] for c in classes]
    columns = max(map(len, members))
    blank = np.full_like(samples.images[0], 255)
    cells = [
        samples.images[row[i]] if i < len(row) else blank for row in members for i in range(columns)
    ]
    return np.stack(cells), columns, [class_names[c] for c in classes]


def _planned_evaluations(job: Job) -> tuple[int, int] | None:
    """Evaluations an image, those of guidance included, and how many its interval saves.

    Counted by a run of the sampler with networks that do nothing; None where the solver decides.
    """
    if isinstance(job.sampler, Ode) and job.sampler.solver == "dopri5":
        return None
    config = job.checkpoint.config
    noise = torch.zeros(1, config.channels, 1, 1)

    def nothing(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(len(x), config.out_channels, 1, 1)

    network = GuidedNetwork(
        nothing,
        job.guidance(nothing),
        two_headed=lambda x, t, y: (nothing(x, t, y), nothing(x, t, y)),
    )
    steps = job.checkpoint.process.sample(
        network, noise, torch.zeros(1).long(), job.sampler, randn=lambda: noise
    )
    for _ in steps:
        pass
    return network.evaluations, network.saved


def _evaluations_text(planned: tuple[int, int] | None) -> str:
    if planned is None:
        return "as dopri5 needs"
    evaluations, saved = planned
    return f"{evaluations} an image" + (f", {saved} saved by the interval" if saved else "")


def _labels_text(facts: dict[str, Any]) -> str:
    text = "every class in turn" if facts["labels"] == "balanced" else "drawn from the seed"
    return f"{text}; image i is a function of seed {facts['seed']} and i"


def _describe(facts: dict[str, Any]) -> str:
    text = facts["mode"].upper() + (f" {facts['solver']}" if "solver" in facts else "")
    text += (
        f", {count(facts['steps'], 'step')}" if "steps" in facts else f", rtol {facts['rtol']:g}"
    )
    if "wt" in facts:
        text += f", w_t {facts['wt']}"
    if "eta" in facts:
        text += f", eta {facts['eta']:g}"
    if facts["cfg_scale"] != 1:
        text += f", guidance {facts['cfg_scale']:g} on {facts['cfg_channels']} channels"
    if "cfg_interval" in facts:
        text += " for t in {:g} to {:g}".format(*facts["cfg_interval"])
    if "guide" in facts:
        guide = Path(facts["guide"])
        text += f", guided by {guide.parent.name}/{guide.name}, scale {facts['guide_scale']:g}"
    if "internal_scale" in facts:
        text += f", internal guidance {facts['internal_scale']:g}"
    if "t_shift" in facts:
        text += f", times shifted by {facts['t_shift']}"
    return text


def _result(samples: SampleSet, job: Job) -> Result:
    meta = samples.meta
    path = samples.directory if samples.path.name == FILE else samples.path
    summary = {
        "images": f"{samples.num} of latents alone, float32",
        "sampler": _describe(meta),
        "evaluations": f"{meta['evaluations_per_image']:g} an image",
        "labels": _labels_text(meta),
    }
    if job.settings.cfg_interval is not None and (planned := _planned_evaluations(job)):
        summary["evaluations"] += f", {planned[1]} saved by the interval"
    if samples.images is None:
        data = dict(meta, samples=str(samples.path))
        return Result(summary=summary, data=data, path=path)
    grid = samples.beside("grid.png")
    _, height, width, _ = samples.images.shape
    summary |= {"images": f"{samples.num}, {width} x {height}", "grid": str(grid)}
    if job.settings.show_path:
        summary["path"] = str(samples.beside("path.png"))
    data = dict(meta, grid=str(grid), samples=str(samples.path))
    return Result(summary=summary, data=data, path=path, next=_evaluate_command(samples.path, path))


def _evaluate_command(file: Path, path: Path) -> str:
    with contextlib.suppress(SitError):
        if find.newest_samples().samefile(file):
            return "sit evaluate --fid"
    return shlex.join(["sit", "evaluate", str(path), "--fid"])
