"""`sit sample` before it draws: settings and checkpoint become a Job, or an error."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sitcli.autoencoders.base import Autoencoder
from sitcli.autoencoders.load import check_known, from_spec
from sitcli.commands.newest import SAMPLES, newest_run
from sitcli.commands.parsing import parse_interval
from sitcli.commands.sample.labels import labels_of
from sitcli.commands.sample.options import ALL_OPTIONS, mode_of, resolve
from sitcli.commands.sample.resume import earlier_preset
from sitcli.commands.sample.sampler import Sampler, sampler_of
from sitcli.core.flow import Flow, Ode
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.prediction import Network
from sitcli.errors import UsageError
from sitcli.machine.devices import resolve_device, resolve_precision
from sitcli.machine.seeds import NEW, STREAMS, Streams
from sitcli.machine.world import device_name
from sitcli.model.compile import CompiledNetwork, resolve_compile
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.samples.noise import Noise, open_noise
from sitcli.samples.sample_set import FILE, SampleSet, file_of
from sitcli.settings.sample import SampleSettings
from sitcli.storage.files import hash_json

NUM = 64
# How the images are computed or stored; anything else in the settings decides what they show.
MAY_CHANGE_ON_RESUME = (
    "out", "batch_size", "device", "gpus", "procs", "png", "npz", "show_path", "vae", "precision",
    "checkpoint", "preset", "compile",
)  # fmt: skip


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
    earlier_preset: bool = False  # --preset means what it meant when the set was begun
    streams_name: str = NEW  # a row of STREAMS

    @property
    def streams(self) -> Streams:
        """The random streams of the set's seed."""
        return STREAMS[self.streams_name](self.settings.seed)

    def facts(self) -> dict[str, Any]:
        """The facts to publish together with any figure of these images."""
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
        """The autoencoder of the latents that the model was trained on."""
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
            if s.cfg_interval is not None:  # outside it only the conditional half runs
                sizes.add(batch)
            network = CompiledNetwork(network, self.device, sizes=sizes)
            if two_headed is not None:
                two_headed = CompiledNetwork(two_headed, self.device, sizes=sizes)
            if guide is not None:
                guide = CompiledNetwork(guide, self.device, sizes={batch})
        return GuidedNetwork(network, self.guidance(guide), two_headed=two_headed)

    def guidance(self, guide: Network | None) -> Guidance:
        """The guidance that was asked for, with `guide` as its weaker network."""
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
    """The facts of guidance beyond plain classifier-free guidance; {} if there is no more."""
    facts: dict[str, Any] = {}
    if s.cfg_interval is not None:
        facts["cfg_interval"] = list(parse_interval(s.cfg_interval))
    if guide is not None:
        facts |= dict(guide=str(guide.path.resolve()), guide_scale=s.guide_scale)
    if s.internal_scale != 1:
        facts["internal_scale"] = s.internal_scale
    return facts


def prepare(settings: SampleSettings) -> Job:
    """Turn settings into a Job, checking all that can be checked before anything is written.

    A sample set that was begun under the preset as it was in an earlier version goes on with that.
    Raises UsageError for options that do not fit the checkpoint or one another.
    """
    earlier = earlier_preset(settings)
    if earlier:
        job = _prepare(dataclasses.replace(settings, **earlier))
        if job.file.exists():
            samples = SampleSet.open(job.file)
            with samples.rows:
                same = all(samples.meta.get(k) == value for k, value in job.facts().items())
                if same and (settings.out is not None or not samples.complete):
                    return dataclasses.replace(job, earlier_preset=True)
    return _prepare(settings)


def _prepare(settings: SampleSettings) -> Job:
    checkpoint = chosen_checkpoint(settings)
    settings = resolve(settings, checkpoint)
    noise = None
    if settings.noise is not None:
        noise = open_noise(settings.noise, checkpoint.config.latent_shape)
        if settings.num not in (None, noise.num):
            raise UsageError(
                f"--num {settings.num}: {settings.noise} holds the noise of {noise.num} images",
                "remove --num",
            )
    num = noise.num if noise is not None else settings.num or NUM
    settings = dataclasses.replace(settings, num=num)
    _check_latents_only(settings)
    if not settings.latents_only:
        check_known(checkpoint.latents["autoencoder"], settings.vae)
    device = resolve_device(device_name(settings.device, gpus=settings.gpus, procs=settings.procs))
    dtype = resolve_precision(settings.precision, device)
    sampler = sampler_of(settings, checkpoint)
    if settings.cfg_scale != 1 and checkpoint.config.num_classes == 0:
        raise UsageError(
            "--cfg-scale needs classes, and this model is unconditional", "remove --cfg-scale"
        )
    if settings.cfg_scale != 1 and checkpoint.meta.get("label_dropout") == 0:
        raise UsageError(
            "--cfg-scale needs the unconditional output, which --label-dropout 0 never trained",
            "remove --cfg-scale",
        )
    guide = _guide(settings, checkpoint)
    if settings.internal_scale != 1 and not checkpoint.config.aux_block:
        raise UsageError(
            f"--internal-scale: {checkpoint.path} has no second head",
            "remove --internal-scale, or train with --internal-guidance 0.5",
        )
    labels = labels_of(settings, checkpoint)
    file = _out_file(settings, checkpoint, noise)
    job = Job(settings, checkpoint, sampler, labels, noise, device, dtype, file, guide)
    compiled = resolve_compile(settings.compile, device, flops=_planned_flops(job))
    return dataclasses.replace(job, compiled=compiled)


def _planned_flops(job: Job) -> float | None:
    """Operations of all images; None where the solver decides. A guide counts like the network."""
    from sitcli.model.flops import total_cost

    planned = planned_evaluations(job)
    return planned and 2 * total_cost(job.checkpoint.config).macs * planned[0] * job.settings.num


def _guide(settings: SampleSettings, checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint of --guide. Raises UsageError if it predicts something else."""
    if settings.guide is None:
        return None
    guide = open_checkpoint(settings.guide)
    pairs = {
        "latents": (checkpoint.config.latent_shape, guide.config.latent_shape),
        "classes": (checkpoint.config.num_classes, guide.config.num_classes),
        "autoencoder": (_autoencoder_hash(checkpoint), _autoencoder_hash(guide)),
        "scaling": (checkpoint.scaling, guide.scaling),
        "path": _paths(checkpoint.process, guide.process),
        "prediction": (checkpoint.process.prediction, guide.process.prediction),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UsageError(
                f"--guide {settings.guide} has other {what} than {checkpoint.path}: {theirs}, not "
                f"{ours}",
                "name a guide trained on the same latents with the same process",
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
            raise UsageError(
                f"--{flag} has no effect with --latents-only, which decodes no images",
                f"remove --{flag}",
            )


def chosen_checkpoint(settings: SampleSettings) -> Checkpoint:
    """The checkpoint that was named, else the newest of the newest run below runs/."""
    return open_checkpoint(settings.checkpoint or newest_run())


# Options added since 0.2. They enter the default name of a sample set only when used, so sets made
# by older versions keep their names.
UNNAMED_WHEN_UNUSED = (
    "noise",
    "latents_only",
    "cfg_interval",
    "guide",
    "guide_scale",
    "internal_scale",
    "t_shift",
    "t_start",
    "t_end",
)


def _out_file(s: SampleSettings, checkpoint: Checkpoint, noise: Noise | None) -> Path:
    if s.out is not None:
        if s.out.suffix == ".h5" and s.out.is_dir():
            raise UsageError(
                f"--out {s.out} is a folder", "name a new file, or a folder without .h5 in its name"
            )
        run = RunDir(s.out)
        if run.config.exists() or run.steps():
            raise UsageError(f"--out {s.out} is a run", "name another folder for the samples")
        return file_of(s.out)
    left_out = {*MAY_CHANGE_ON_RESUME, *UNNAMED_WHEN_UNUSED}
    kept = {k: v for k, v in dataclasses.asdict(s).items() if k not in left_out}
    kept |= {"noise": noise.hash} if noise is not None else {}
    for name in UNNAMED_WHEN_UNUSED[1:]:
        value, default = getattr(s, name), getattr(SampleSettings, name)
        kept |= {name: str(value)} if value not in (default, False) else {}
    mark = hash_json([kept, str(checkpoint.path.resolve())])[:6]
    name = f"{checkpoint.path.parent.name}-{checkpoint.path.name}-{mark}"
    return SAMPLES / name / FILE


def planned_evaluations(job: Job) -> tuple[int, int] | None:
    """(evaluations per image including those of guidance, how many of them the interval saves).

    None where the solver decides. They are counted by running the sampler on networks that
    return zeros.
    """
    if isinstance(job.sampler, Ode) and job.sampler.adaptive:
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
