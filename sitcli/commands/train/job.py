"""`sit train` before it writes: settings, store and device become a Job, or an error."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from sitcli.commands.newest import newest_store
from sitcli.commands.parsing import parse_checkpoint_blocks, transformer_config
from sitcli.commands.train.adapters import adapter_sizes, check_peft
from sitcli.commands.train.begun import begun, from_source
from sitcli.commands.train.board import check_wandb
from sitcli.commands.train.feed import Order
from sitcli.commands.train.init import begin, open_source
from sitcli.commands.train.recipe import Routing, make_extras, make_routing, network_parts
from sitcli.commands.train.resume import (
    check_same_model,
    said_by_default,
    stores_of_run,
    write_config,
)
from sitcli.commands.train.run_settings import (
    make_process,
)
from sitcli.commands.train.trainable import trained_names
from sitcli.core.flow import Flow
from sitcli.core.objective import Extras
from sitcli.engine.config import default_stage, engine_config, merge_config, read_file
from sitcli.engine.engine import compiles_stage_3
from sitcli.errors import SitError, UsageError
from sitcli.events import Note, Warn
from sitcli.latents.joined import JoinedStores, open_stores
from sitcli.latents.store import LatentStore
from sitcli.machine.devices import precision_name, resolve_device, resolve_precision
from sitcli.machine.seeds import NEW, STREAMS, Streams
from sitcli.machine.world import World, device_name
from sitcli.model.compile import resolve_compile
from sitcli.model.config import TransformerConfig
from sitcli.model.flops import training_macs
from sitcli.model.transformer import parameter_sizes
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.history import Change, History
from sitcli.runs.run_dir import RunDir
from sitcli.settings.option import Said
from sitcli.settings.train import TrainSettings
from sitcli.storage import locks
from sitcli.storage.files import make_folder
from sitcli.weights.start import Start


@dataclass(frozen=True)
class Job:
    """Settings resolved against store, device and run directory."""

    settings: TrainSettings
    store: LatentStore | JoinedStores
    config: TransformerConfig
    process: Flow
    device: torch.device
    dtype: torch.dtype
    engine: dict[str, Any]  # DeepSpeed's configuration
    checkpoint_every: int  # of the transformer's blocks
    compiled: bool
    run: RunDir
    resume: Checkpoint | None
    start: Start | None  # of a new run from other weights
    init: dict[str, Any] | None  # what meta.json says of these
    trained: frozenset[str] | None  # the names of the parameters that are trained; None: all
    history: History  # what the run changed on the way
    # (first, last) steps to repeat with other random numbers after a rollback
    redrawn: tuple[tuple[int, int], ...]
    extras: Extras
    routing: Routing | None
    streams_name: str  # a row of STREAMS
    messages: tuple[Note | Warn, ...] = ()  # what the reading of foreign weights has to say

    @property
    def streams(self) -> Streams:
        """The random streams of the run's seed."""
        return STREAMS[self.streams_name](self.settings.seed)

    @property
    def order(self) -> Order:
        """The order of the images."""
        return Order(self.store.num_items, self.streams, began=self.history.data_began)

    @property
    def change_now(self) -> Change | None:
        """What the run changes as it goes on, None if nothing."""
        changes = self.history.changes
        known = self.resume.history.changes if self.resume else ()
        return changes[-1] if len(changes) > len(known) else None

    def images_at(self, step: int) -> int:
        """How many images are drawn before step `step` (from 0), one that is to come."""
        first, images = (self.resume.step, self.resume.images_seen) if self.resume else (0, 0)
        return images + (step - first) * self.settings.batch_size

    @property
    def kept_tokens(self) -> int:
        """How many tokens of an image skip no block; 0 if none skips any."""
        return self.routing.kept(self.config.tokens) if self.routing else 0

    @property
    def zero(self) -> int:
        """DeepSpeed's ZeRO stage."""
        return self.engine["zero_optimization"]["stage"]

    @cached_property
    def trained_share(self) -> float:
        """The share of the network's parameters that get gradients; adapters count as none."""
        if self.trained is None:
            return 1.0
        sizes = parameter_sizes(self.config)
        return sum(sizes.get(name, 0) for name in self.trained) / sum(sizes.values())

    @property
    def kept_elements(self) -> tuple[int, int]:
        """The numbers of weights that a checkpoint keeps, and of those that are trained."""
        sizes = parameter_sizes(self.config)
        whole = sum(sizes.values())
        if self.settings.lora:
            sizes |= adapter_sizes(self.config, self.settings.lora)
        trained = sum(sizes[name] for name in sizes if self.trained is None or name in self.trained)
        return (trained if self.settings.lora else whole), trained

    @property
    def untrained(self) -> set[str]:
        """The parameters that begin anew, and that --freeze or --train-only leave so."""
        if self.trained is None or self.start is None:
            return set()
        return set(self.start.new) - self.trained - {"pos_embed"}

    @property
    def step_flops(self) -> float:
        """Operations of a step, 2 per MAC: a forward pass, and two as long backward.

        The second of these is of the gradients of the weights, of those that are trained.
        """
        routed = self.routing and (self.kept_tokens, self.routing.start, self.routing.stop)
        macs = training_macs(
            self.config, routed=routed, aux=self.extras.internal > 0, align=self.extras.repa > 0
        )
        return (2 + self.trained_share) * 2 * macs * self.settings.batch_size

    @contextlib.contextmanager
    def owned_run(self) -> Iterator[None]:
        """Create or tidy the run directory, and keep other trainers out of it meanwhile."""
        make_folder(self.run.path)
        with locks.lock(self.run.config, what=self.run.path):
            self.run.clean()
            yield

    def write_config(self) -> None:
        """Write config.yaml: from now on the run has these settings."""
        settings = replace(self.settings, precision=precision_name(self.dtype))
        write_config(self.run.config, settings, init=self.init)

    def rolled_back(self, bad_step: int) -> Job:
        """This job from its newest checkpoint, or the beginning, to repeat with other random
        numbers up to bad_step."""
        newest = self.run.newest()
        resume = open_checkpoint(newest) if newest else None
        start = resume.step if resume else 0
        return replace(self, resume=resume, redrawn=((start, bad_step),))


def prepare(settings: TrainSettings, world: World, said: Said | None = None) -> Job:
    """Turn settings into a Job, checking all that can be checked before anything is written.

    said: the options that were given, each with how to take it back; None: those that are not at
    their default. A run that goes on has its own value of every other option that must not change.
    Raises UsageError for settings that do not fit the store, the device or the run, SitError for
    a store or a run that cannot be used.
    """
    device = resolve_device(device_name(settings.device, gpus=settings.gpus, procs=settings.procs))
    if device.type == "mps":
        raise UsageError("training on mps is not supported by DeepSpeed", "use --device cpu")
    known = stores_of_run(RunDir(settings.out)) if settings.out else []
    store = open_stores(settings.latents or known or [newest_store()])
    if store.num_items == 0:
        raise SitError(f"{store.path} holds no readable image", "encode another folder")
    store.check_sample()
    said = said_by_default(settings) if said is None else said
    settings, source = from_source(settings, said)
    settings, run, resume, history = begun(settings, said, store, device)
    _check_batch_size(settings, world)
    process = make_process(settings)
    config = _config(settings, store, process)
    start, init = None, resume.meta.get("init") if resume else None
    if resume:
        check_same_model(run, resume, config, process)
    elif settings.init is not None:
        source = source or open_source(settings)
        start = begin(source, config, process, store)
        init = source.facts(start)
    try:
        checkpoint_every = parse_checkpoint_blocks(settings.checkpoint_blocks)
    except ValueError as error:
        raise UsageError(f"--checkpoint-blocks: {error}", "use none, all, or every-2") from None
    _check_extras(settings, config)
    dtype = resolve_precision(settings.precision, device)
    job = Job(
        settings=settings,
        store=store,
        config=config,
        process=process,
        device=device,
        dtype=dtype,
        engine=_engine_config(settings, world, dtype),
        checkpoint_every=checkpoint_every,
        compiled=False,
        run=run,
        resume=resume,
        start=start,
        init=init,
        trained=_trained(settings, config, start, resume),
        history=history,
        redrawn=tuple(map(tuple, resume.meta.get("redrawn", ()))) if resume else (),
        extras=make_extras(settings),
        routing=make_routing(settings),
        streams_name=resume.streams_name if resume else NEW,
        messages=source.messages if start else (),
    )
    return replace(job, compiled=_compiled(job))


def _check_extras(settings: TrainSettings, config: TransformerConfig) -> None:
    """Raise SitError for a library that is not installed, UsageError for adapters too large."""
    if settings.wandb:
        check_wandb()
    if settings.lora:
        check_peft()
        if settings.lora >= config.width:
            raise UsageError(
                f"--lora {settings.lora}: the layers have {config.width} channels, and an adapter "
                "of as many is larger than they",
                "use --lora 16",
            )


def _compiled(job: Job) -> bool:
    """Whether the blocks are compiled. Raises UsageError where they must be and cannot."""
    settings, device = job.settings, job.device
    # Counted over all steps, not those that are left: a resumed run is compiled as it was at first.
    flops = job.step_flops * settings.steps
    compiled = resolve_compile(settings.compile, device, flops=flops)
    if compiled and job.zero == 3 and not compiles_stage_3(device):
        if settings.compile == "on":
            raise UsageError(
                f"--compile on: compiled by torch {torch.__version__}, weights under --zero 3 get "
                "no gradients",
                "use --compile off, or update torch",
            )
        compiled = False
    return compiled


def _trained(
    settings: TrainSettings,
    config: TransformerConfig,
    start: Start | None,
    resume: Checkpoint | None,
) -> frozenset[str] | None:
    """The names of the parameters that are trained; None: all of them."""
    if resume:
        kept = resume.meta.get("trained")
        return None if kept is None else frozenset(kept)
    if not settings.freeze and not settings.train_only and not settings.lora:
        return None
    names = list(parameter_sizes(config))
    chosen = dict(freeze=settings.freeze, train_only=settings.train_only)
    if not settings.lora:
        return frozenset(trained_names(names, **chosen))
    new = start.new & set(names) if start else set()
    if settings.train_only:
        new |= trained_names(names, freeze=None, train_only=settings.train_only)
    adapters = adapter_sizes(config, settings.lora)
    left = trained_names([*names, *adapters], freeze=settings.freeze, train_only=None)
    return frozenset(left & {*adapters, *new})


def _check_batch_size(settings: TrainSettings, world: World) -> None:
    share = world.size * settings.accumulate
    if settings.batch_size % share:
        raise UsageError(
            f"--batch-size {settings.batch_size} is not divisible by {world.size} process(es) x "
            f"{settings.accumulate} micro-batch(es)",
            f"use --batch-size {math.ceil(settings.batch_size / share) * share}",
        )


def _config(
    settings: TrainSettings, store: LatentStore | JoinedStores, process: Flow
) -> TransformerConfig:
    """The network's configuration. Raises UsageError for latents or sizes that do not fit."""
    channels, height, width = store.latent_shape
    if height != width:
        raise UsageError(f"{store.path} holds {height} x {width} latents; the model takes squares")
    return transformer_config(
        settings.model,
        input_size=height,
        channels=channels,
        out_channels=process.out_channels(channels),
        num_classes=store.num_classes,
        patch=settings.patch,
        depth=settings.depth,
        width=settings.width,
        heads=settings.heads,
        block=settings.block,
        **network_parts(settings, store),
    )


def _engine_config(settings: TrainSettings, world: World, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration, merged with the user's --deepspeed-config."""
    file = read_file(settings.deepspeed_config) if settings.deepspeed_config else {}
    zero = settings.zero or default_stage(settings.offload, world, file)
    engine = engine_config(
        dtype=dtype,
        zero=int(zero),
        offload=settings.offload,
        micro_batch=settings.batch_size // (world.size * settings.accumulate),
        accumulate=settings.accumulate,
        world=world,
        clip=settings.clip,
    )
    if settings.deepspeed_config:
        engine = merge_config(engine, file, settings.deepspeed_config)
    return engine
