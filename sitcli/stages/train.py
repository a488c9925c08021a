"""`sit train`: a latent store to a run directory."""

from __future__ import annotations

import contextlib
import math
import resource
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sitcli.core.flow import Flow, Ode
from sitcli.core.objective import Extras, to_tokens, training_loss, weighted
from sitcli.errors import Interrupted, SitError, UsageError
from sitcli.events import Event, Note, Progress, Result, Stage, Warn
from sitcli.io import find, optimizer_state, rows
from sitcli.io.autoencoder import Autoencoder, decode_latents, from_spec
from sitcli.io.board import Board, check_wandb, spread
from sitcli.io.checkpoint import (
    Checkpoint,
    RunDir,
    build_network,
    checkpoint_meta,
    latent_facts,
    open_checkpoint,
    snapshot_name,
    write_tensors,
)
from sitcli.io.compile import compile_blocks, compile_count, resolve_compile
from sitcli.io.config import (
    as_plain,
    check_same,
    make_process,
    read_config,
    resolve,
    run_name,
    transformer_config,
    write_config,
)
from sitcli.io.engine import (
    default_stage,
    engine_config,
    gradient_norm,
    held_bytes,
    join_group,
    make_engine,
    merge_config,
    read_file,
    whole_weights,
)
from sitcli.io.feed import Draw, Feed, Order, draw_step
from sitcli.io.files import make_folder
from sitcli.io.latents import JoinedStores, LatentStore, open_stores
from sitcli.io.launch import (
    autocast,
    generator,
    precision_name,
    resolve_device,
    resolve_precision,
    stream_seed,
    tune_cpu,
)
from sitcli.io.pictures import save_curve, save_grid
from sitcli.io.processes import World, device_name, planned_size, world_for
from sitcli.io.ranks import from_first, meeting, of_all, together
from sitcli.io.recipe import Routing, make_extras, make_routing, make_times, network_parts
from sitcli.io.samples import FILE as SAMPLES_FILE
from sitcli.io.scaler import load_scaler_state, loss_scale, scaler_state
from sitcli.model.ema import TRACKED_STDS, ShardedEma, ema_decay, power_decay, power_exponent
from sitcli.model.flops import total_cost, training_macs
from sitcli.model.transformer import Route, Transformer, TransformerConfig, parse_checkpoint_blocks
from sitcli.settings import TrainSettings
from sitcli.text import count, format_bytes, format_shape

LOSS_BINS = 20  # of the velocity loss over t
LOSS_MEMORY = 0.999  # its decay per step
GRID_IMAGES, GRID_STEPS = 16, 20
SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 2.0


def train(settings: TrainSettings) -> Stage:
    """Train until settings.steps, going on from the newest checkpoint of the run.

    Runs in as many processes as a launcher started, or alone; rank 0 yields the events. Raises
    UsageError for settings that do not fit the store or the run, SitError when the loss is not
    finite or a last checkpoint cannot be written, Interrupted after a signal (with everything
    saved).
    """
    world = world_for(gpus=settings.gpus, procs=settings.procs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(meeting(world, backend=None if torch.cuda.is_available() else "gloo"))
        job = together(world, lambda: prepare(settings, world))
        # What the first rank measured holds for all.
        job = replace(job, dtype=from_first(world, lambda: job.dtype))
        if world.rank == 0 and settings.latents is None:
            yield Note(f"latents: {job.store.path} (the newest complete store)")
        if job.resume and job.resume.step >= job.settings.steps:
            yield Note(f"all {job.settings.steps} steps of {job.run.path} are done already")
            return _result(job, {}, {})
        # The first rank holds the run directory for all.
        owned = contextlib.ExitStack()
        stack.enter_context(owned)
        from_first(world, lambda: owned.enter_context(job.owned_run()))
        join_group(world, job.device)
        tune_cpu(job.device)
        stop = stack.enter_context(_signals_noted())
        while True:
            trainer = Trainer(job, world)
            try:
                for event in trainer.run(stop):
                    if world.rank == 0:
                        yield event
                return _result(job, trainer.summary, trainer.data)
            except NotFinite as failure:
                if job.settings.on_nan == "stop" or job.redrawn:
                    raise
                job = job.rolled_back(failure.step)
                if world.rank == 0:
                    yield Warn(
                        f"the loss was not finite at step {failure.step}: back to step "
                        f"{job.redrawn[0][0]}, drawing other noise and times from there"
                    )
            finally:
                trainer.close()


class NotFinite(SitError):
    """The loss of `step` was not finite; every rank raises it."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the loss was not finite at step {step}",
            "go on with a lower --lr, --clip 1, or --precision fp32, under another --out",
            shared=True,
        )
        self.step = step


def plan(settings: TrainSettings) -> Result:
    """What `train` would do; touches nothing."""
    world = World(0, planned_size(gpus=settings.gpus, procs=settings.procs))
    job = prepare(settings, world)
    s, cost = job.settings, total_cost(job.config)
    done = job.resume.step if job.resume else 0
    to_go = job.step_flops * (s.steps - done)
    # In fp32: the weights, their average, and Adam's two moments.
    checkpoint_bytes = cost.params * 4 * (4 + len(TRACKED_STDS) * s.power_ema)
    summary = {
        "latents": f"{', '.join(map(str, job.store.paths))}: "
        f"{count(job.store.num_items, 'item')} of {format_shape(job.store.latent_shape)}",
        "model": ", ".join(
            [
                s.model,
                f"{s.block} blocks",
                *job.config.beyond,
                f"{cost.params / 1e6:.1f} M parameters",
                f"{cost.macs / 1e9:.2f} GMACs",
            ]
        ),
        "objective": ", ".join([job.process.describe(), *_beyond(job)]),
        "steps": f"{done} done, {s.steps} in all, batch {s.batch_size}, lr {s.lr:g}",
        "cost": f"{to_go / 1e15:.3g} PFLOP to go",
        "running": f"{job.device.type}, {precision_name(job.dtype)}, ZeRO {job.zero}, "
        f"{count(world.size, 'process', 'processes')}",
        "checkpoints": f"every {s.save_every} steps, about {format_bytes(checkpoint_bytes)} each",
        "run": str(job.run.path),
    }
    data = dict(
        run=str(job.run.path),
        latents=str(job.store.path),
        model=s.model,
        block=s.block,
        params=cost.params,
        gmacs=cost.macs / 1e9,
        steps=s.steps,
        steps_done=done,
        batch_size=s.batch_size,
        processes=world.size,
        checkpoint_bytes=checkpoint_bytes,
        precision=precision_name(job.dtype),
    )
    return Result(summary=summary, data=data, next="the same command without --dry-run")


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
    redrawn: tuple[tuple[int, int], ...]  # first and last step of what is drawn a second time
    extras: Extras
    routing: Routing | None

    @property
    def kept_tokens(self) -> int:
        """Of an image's, those that skip no block; 0 where none does."""
        return self.routing.kept(self.config.tokens) if self.routing else 0

    @property
    def zero(self) -> int:
        """DeepSpeed's ZeRO stage."""
        return self.engine["zero_optimization"]["stage"]

    @property
    def step_flops(self) -> float:
        """Operations of a step: forward and backward are three forwards of 2 per MAC."""
        routed = self.routing and (self.kept_tokens, self.routing.start, self.routing.stop)
        macs = training_macs(
            self.config, routed=routed, aux=self.extras.internal > 0, align=self.extras.repa > 0
        )
        return 3 * 2 * macs * self.settings.batch_size

    @contextlib.contextmanager
    def owned_run(self) -> Iterator[None]:
        """Create or tidy the run directory and keep other trainers out of it."""
        make_folder(self.run.path)
        with rows.lock(self.run.config, what=self.run.path):
            self.run.clean()
            write_config(
                self.run.config, replace(self.settings, precision=precision_name(self.dtype))
            )
            yield

    def rolled_back(self, bad_step: int) -> Job:
        """This job from its last checkpoint, or the beginning, with other draws up to bad_step."""
        newest = self.run.newest()
        resume = open_checkpoint(newest) if newest else None
        start = resume.step if resume else 0
        return replace(self, resume=resume, redrawn=((start, bad_step),))


def prepare(settings: TrainSettings, world: World) -> Job:
    """Check everything that can be checked before anything is written."""
    device = resolve_device(device_name(settings.device, gpus=settings.gpus, procs=settings.procs))
    if device.type == "mps":
        raise UsageError("training on mps is not supported by DeepSpeed", "use --device cpu")
    store = open_stores(settings.latents or [find.newest_store()])
    if store.num_items == 0:
        raise SitError(f"{store.path} holds no readable image", "encode another folder")
    settings = resolve(settings, store, device)
    share = world.size * settings.accumulate
    if settings.batch_size % share:
        raise UsageError(
            f"--batch-size {settings.batch_size} is not divisible by {world.size} process(es) x "
            f"{settings.accumulate} micro-batch(es)",
            f"use {math.ceil(settings.batch_size / share) * share}",
        )
    channels, height, width = store.latent_shape
    if height != width:
        raise UsageError(f"{store.path} holds {height} x {width} latents; the model takes squares")
    process = make_process(settings)
    try:
        checkpoint_every = parse_checkpoint_blocks(settings.checkpoint_blocks)
    except ValueError as error:
        raise UsageError(f"--checkpoint-blocks: {error}", "none, all, or every-2") from None
    if settings.wandb:
        check_wandb()
    config = transformer_config(
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
    run = RunDir(settings.out or Path("runs") / run_name(settings, store))
    if (run.path / SAMPLES_FILE).exists():
        raise UsageError(f"{run.path} is a sample set", "a run takes a folder of its own")
    precision = settings.precision
    if run.config.exists():
        check_same(run.config, settings)
        # The trial behind `auto` may fall out differently another day; a run keeps its precision.
        kept = read_config(run.config).get("precision", "auto")
        if precision not in ("auto", kept) and run.newest():
            raise UsageError(
                f"{run.path} was trained in {kept}, not {precision}", "name another --out"
            )
        precision = kept if precision == "auto" else precision
    dtype = resolve_precision(precision, device)
    newest = run.newest()
    resume = open_checkpoint(newest) if newest else None
    if resume and not resume.trainable:
        kind = "imported weights" if "lineage" in resume.meta else "an average of another run"
        raise UsageError(
            f"{run.path} holds {kind}, without an optimizer's state to go on from",
            "name another --out",
        )
    if resume and resume.latents["fingerprint"] != store.fingerprint:
        before = resume.latents.get("stores", [resume.latents["store"]])
        flags = " ".join(f"--latents {shlex.quote(path)}" for path in before)
        raise UsageError(
            f"{run.path} was trained on other latents than {', '.join(map(str, store.paths))}",
            f"name them with {flags}; or another --out",
        )
    file = read_file(settings.deepspeed_config) if settings.deepspeed_config else {}
    zero = settings.zero or default_stage(settings.offload, world, file)
    engine = engine_config(
        dtype=dtype,
        zero=int(zero),
        offload=settings.offload,
        micro_batch=settings.batch_size // share,
        accumulate=settings.accumulate,
        world=world,
        clip=settings.clip,
    )
    if settings.deepspeed_config:
        engine = merge_config(engine, file, settings.deepspeed_config)
    job = Job(
        settings=settings,
        store=store,
        config=config,
        process=process,
        device=device,
        dtype=dtype,
        engine=engine,
        checkpoint_every=checkpoint_every,
        compiled=False,
        run=run,
        resume=resume,
        redrawn=tuple(map(tuple, resume.meta.get("redrawn", ()))) if resume else (),
        extras=make_extras(settings),
        routing=make_routing(settings),
    )
    # Of all steps, not of those that are left: a run that goes on computes as it began.
    flops = job.step_flops * settings.steps
    return replace(job, compiled=resolve_compile(settings.compile, device, flops=flops))


def _beyond(job: Job) -> list[str]:
    """What the objective has beyond the papers', in words."""
    s, parts = job.settings, []
    if s.t_dist != "uniform":
        until = f" until step {s.t_dist_until}" if s.t_dist_until else ""
        parts.append(f"{s.t_dist} times ({s.t_mean:g}, {s.t_std:g}){until}")
    if s.t_shift is not None:
        parts.append(f"times shifted by {s.t_shift}")
    if s.layer_sync:
        parts.append(f"LayerSync {s.layer_sync:g} of blocks {s.sync_blocks}")
    if s.internal_guidance:
        parts.append(f"a head after block {s.aux_block}, weight {s.internal_guidance:g}")
    if s.tread:
        parts.append(f"{s.tread:.0%} of the tokens skip blocks between {s.tread_blocks}")
    if s.repa is not None:
        parts.append(f"REPA {s.repa}")
    return parts


class Meter:
    """Sums over the steps since the last log line, and the velocity loss over t.

    Kept on the device so that no step waits for the host; saved with the checkpoint.
    """

    def __init__(self, device: torch.device, terms: tuple[str, ...] = ()) -> None:
        self.loss = torch.zeros((), device=device)
        self.terms = {name: torch.zeros((), device=device) for name in terms}
        self.total = torch.zeros((), device=device)  # of the step, with the terms
        self.steps = 0
        self.bad_step = torch.full((), -1, dtype=torch.long, device=device)
        self.sums = torch.zeros(LOSS_BINS, device=device)
        self.counts = torch.zeros(LOSS_BINS, device=device)

    def add(self, loss: Tensor, terms: dict[str, Tensor], total: Tensor, *, parts: int) -> None:
        """One of `parts` micro-batches: its mean loss, the terms beside it, and their sum."""
        self.loss += loss.detach() / parts
        self.total += total.detach() / parts
        for name, term in terms.items():
            self.terms[name] += term.detach().mean() / parts

    def add_velocity(self, t: Tensor, velocity: Tensor) -> None:
        """Per-sample velocity losses (b,) at times t (b,)."""
        bins = (t * LOSS_BINS).long().clamp(max=LOSS_BINS - 1)
        self.sums.index_add_(0, bins, velocity)
        self.counts.index_add_(0, bins, torch.ones_like(velocity))

    def end_step(self, step: int) -> None:
        self.steps += 1
        first = (self.bad_step < 0) & ~torch.isfinite(self.total)
        self.total.zero_()
        self.bad_step = torch.where(first, step, self.bad_step)
        self.sums *= LOSS_MEMORY
        self.counts *= LOSS_MEMORY

    def reduced(self, world: World) -> dict[str, Any]:
        """Over all ranks, as plain numbers; every rank must call it."""
        means = torch.stack([self.loss, *self.terms.values()]) / world.size
        packed = torch.cat([self.sums, self.counts, means])
        bad = self.bad_step.clone()
        if world.size > 1:
            dist.all_reduce(packed)
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        sums, counts, (loss, *terms) = packed.cpu().split([LOSS_BINS, LOSS_BINS, len(means)])
        return dict(
            loss_sum=float(loss),
            term_sums=dict(zip(self.terms, map(float, terms), strict=True)),
            steps=self.steps,
            bad_step=int(bad),
            sums=sums.tolist(),
            counts=counts.tolist(),
        )

    def load(self, state: dict[str, Any], world: World) -> None:
        """Take up what `reduced` returned; the bins go to rank 0 alone."""
        self.loss.fill_(state["loss_sum"])
        for name, value in state.get("term_sums", {}).items():
            self.terms[name].fill_(value)
        self.steps = state["steps"]
        if world.rank == 0:
            self.sums.copy_(torch.tensor(state["sums"]))
            self.counts.copy_(torch.tensor(state["counts"]))


class Saving:
    """A checkpoint on its way to the disk, in a thread, while training goes on.

    step, meta: of the checkpoint; error: why it could not be written; stall: seconds that training
    stood still for it; seconds: those of the writing.
    """

    def __init__(
        self, step: int, meta: dict[str, Any], write: Callable[[], None], *, stall: float
    ) -> None:
        self.step, self.meta, self.stall = step, meta, stall
        self.seconds = 0.0
        self.error: OSError | None = None
        self._write = write
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.perf_counter()
        try:
            self._write()
        except OSError as error:
            self.error = error
        self.seconds = time.perf_counter() - began

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()


class Stopwatch:
    """Seconds this rank works before it meets the others in a step: waiting for data, forward.

    On a GPU the forward pass is timed there, without waiting for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.steps, self.data, self.forward = 0, 0.0, 0.0
        self._began = 0.0
        self._events: list[tuple[Any, Any]] = []

    def start(self) -> None:
        if self.cuda:
            self._events.append(tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)))
            self._events[-1][0].record()
        self._began = time.perf_counter()

    def stop(self) -> None:
        if self.cuda:
            self._events[-1][1].record()
        else:
            self.forward += time.perf_counter() - self._began

    def read(self) -> tuple[float, float]:
        """Seconds a step of data and of forward since the last reading."""
        if self.cuda:
            torch.cuda.synchronize()
            self.forward = sum(first.elapsed_time(last) for first, last in self._events) / 1e3
            self._events.clear()
        steps = max(1, self.steps)
        seconds = self.data / steps, self.forward / steps
        self.steps, self.data, self.forward = 0, 0.0, 0.0
        return seconds


class Trainer:
    """The training loop over a DeepSpeed engine."""

    def __init__(self, job: Job, world: World) -> None:
        self.job, self.world = job, world
        s = job.settings
        torch.manual_seed(stream_seed(s.seed, "weights"))
        network = Transformer(job.config)
        network.checkpoint_every = job.checkpoint_every
        if job.resume:
            network.load_state_dict(job.resume.weights("model"))
        self.engine = make_engine(
            network,
            job.engine,
            device=job.device,
            lr=s.lr,
            beta2=s.beta2,
            weight_decay=s.weight_decay,
        )
        if job.compiled:
            compile_blocks(self.engine.module)
        self.ema = ShardedEma(self.engine.module, rank=world.rank, world_size=world.size)
        self.order = Order(job.store.num_items, s.seed)
        self.labels = torch.from_numpy(job.store.labels)
        self.tracks = {
            std: ShardedEma(self.engine.module, rank=world.rank, world_size=world.size)
            for std in (TRACKED_STDS if s.power_ema else ())
        }
        self.meter = Meter(job.device, job.extras.names)
        self.step = 0
        self.grids = True
        self.autoencoder: Autoencoder | None = None
        self.board: Board | None = None
        self.saving: Saving | None = None
        self.pruning: threading.Thread | None = None
        self.watch = Stopwatch(job.device)
        self.timed = (0, 0.0)  # steps of this process since the last log line, and their seconds
        self.peak = 0.0  # operations a second of a plain matrix product here
        self.compiled = 0  # graphs, after the first step
        self.costs: list[tuple[float, float]] = []  # of saving: stalled, in the background
        self.norm: Tensor | None = None  # of the gradients of the last step that is logged
        self.summary: dict[str, str] = {}
        self.data: dict[str, Any] = {}
        if job.resume:
            together(world, lambda: optimizer_state.restore(self.engine, job.resume.path))
            self.ema.load(job.resume.weights("ema"))
            for std, track in self.tracks.items():
                track.load(job.resume.tensors(snapshot_name(std)))
            self.meter.load(job.resume.meta["meter"], world)
            load_scaler_state(self.engine, job.resume.meta.get("scaler", {}))
            self.step = job.resume.step
        self.feed = Feed(self._micro_batches, self.step, s.steps)

    def run(self, stop: list[int]) -> Iterator[Event]:
        """All steps that are left; `stop` receives the number of a signal."""
        s, run = self.job.settings, self.job.run
        if self.world.rank == 0:
            run.cut_metrics(self.step)
            self.board = Board(
                run.path,
                first_step=self.step + 1,
                wandb=s.wandb,
                name=run.path.name,
                config=as_plain(s),
            )
            yield from self._news()
        yield Note(f"run: {run.path}" + (f", going on after step {self.step}" if self.step else ""))
        flops = self.job.step_flops
        yield self._progress("")
        try:
            yield from self._steps(stop, flops)
        except NotFinite as failure:
            if self.saving:  # begun before, and good
                self.saving.wait()
                yield from self._settle(last=False)
            newest = run.newest()
            kept = f"the last good checkpoint is {newest}" if newest else "nothing was saved yet"
            failure.message += f"; {kept}"
            raise

    def _steps(self, stop: list[int], flops: float) -> Iterator[Event]:
        s, run = self.job.settings, self.job.run
        text = ""
        while self.step < s.steps:
            began = time.perf_counter()
            self.train_step()
            logged = self._is_logged(self.step)
            # A GPU is behind the host: the check waits for it, within the time that is taken. On
            # a CPU it costs nothing, and names the step at once.
            state = self._checked() if logged or self.job.device.type == "cpu" else {}
            steps, seconds = self.timed
            self.timed = (steps + 1, seconds + time.perf_counter() - began)
            if logged:
                text = self._log(state, flops)
                yield from self._news()
            yield self._progress(text)
            signalled = yield from self._exchange(stop)
            last = self.step == s.steps or bool(signalled)
            if self.step % s.save_every == 0 or last:
                yield from self._save(last=last)
            if s.sample_every and (self.step % s.sample_every == 0 or self.step == s.steps):
                yield from self._draw_grid()
            if signalled:
                raise Interrupted(
                    f"stopped by a signal, saved at step {self.step} of {s.steps} in {run.path}",
                    "the same command goes on from there",
                    signal_number=signalled,
                )

    def _is_logged(self, step: int) -> bool:
        return step % self.job.settings.log_every == 0 or step == self.job.settings.steps

    def close(self) -> None:
        """End the threads, flush what is buffered and free the engine's memory."""
        self.feed.close()
        if self.saving:
            self.saving.wait()  # it is not to write into a folder that is removed
        if self.pruning:
            self.pruning.join()
        if self.board is not None:
            self.board.close()
        self.engine.destroy()

    def train_step(self) -> None:
        """One optimizer step on this rank's share of the global batch."""
        job, s = self.job, self.job.settings
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(s, self.step)
        began = time.perf_counter()
        batches = self.feed.get(self.step)
        self.watch.data += time.perf_counter() - began
        for batch in batches:
            x, y, t, eps, places, features = (
                tensor if tensor is None else tensor.to(job.device, non_blocking=True)
                for tensor in batch
            )
            self.watch.start()
            loss, terms = training_loss(
                job.process,
                self.engine,
                x,
                y,
                t=t,
                eps=eps,
                extras=job.extras,
                route=places if places is None else Route(places, *job.routing[1:]),
                features=features,
            )
            total = weighted(loss.loss, terms, job.extras).mean()
            self.watch.stop()
            self.engine.backward(total)
            whole = self.engine.is_gradient_accumulation_boundary()  # all micro-batches are in
            if whole and self._is_logged(self.step + 1):
                self.norm = gradient_norm(self.engine)
            self.engine.step()
            self.meter.add(loss.loss.mean(), terms, total, parts=s.accumulate)
            self.meter.add_velocity(t, loss.velocity)
        self.ema.update(ema_decay(self.step, decay=s.ema, warmup=s.ema_warmup))
        for std, track in self.tracks.items():
            track.update(power_decay(self.step, power_exponent(std)))
        self.step += 1
        self.watch.steps += 1
        self.meter.end_step(self.step)
        if job.compiled and not self.compiled:
            self.compiled = compile_count()

    def _micro_batches(self, step: int) -> list[tuple[Tensor | None, ...]]:
        """(x, y, t, eps, places, features) of this rank's micro-batches of a step, on the CPU."""
        job, s = self.job, self.job.settings
        draw = self._draw(step)
        mine = range(s.batch_size)[self.world.slice(s.batch_size)]
        micro = len(mine) // s.accumulate
        batches = []
        for start in range(mine.start, mine.stop, micro):
            part = slice(start, start + micro)
            posterior = None if draw.posterior is None else draw.posterior[part]
            x = job.store.batch(draw.items[part], flip=draw.flip[part], noise=posterior)
            y = self.labels[draw.items[part]].masked_fill(draw.hide[part], job.config.null_class)
            places = None if draw.places is None else draw.places[part]
            features = None
            if job.extras.repa:
                values = job.store.features(draw.items[part], flip=draw.flip[part])
                features = to_tokens(torch.from_numpy(values).float(), job.config.grid)
            batch = (x, y, draw.t[part], draw.eps[part], places, features)
            # From pinned memory the copy to a GPU does not wait for its earlier work.
            if job.device.type == "cuda":
                batch = tuple(part if part is None else part.pin_memory() for part in batch)
            batches.append(batch)
        return batches

    def _draw(self, step: int) -> Draw:
        s, store = self.job.settings, self.job.store
        size = s.batch_size
        again = any(first <= step < last for first, last in self.job.redrawn)
        random = generator(s.seed, "step", step, *(["again"] if again else []))
        return draw_step(
            random,
            self.order.batch(step, size),
            shape=store.latent_shape,
            draw_times=partial(self.job.process.draw_times, times=make_times(s, step)),
            label_dropout=s.label_dropout if store.num_classes else 1.0,
            flip=s.flip,
            posterior=store.kind == "moments" and s.posterior == "sample",
            tokens=self.job.config.tokens,
            kept=self.job.kept_tokens,
        )

    def _checked(self) -> dict[str, Any]:
        """The meter's state. NotFinite if a loss was not finite."""
        state = self.meter.reduced(self.world)
        if state["bad_step"] >= 0:
            raise NotFinite(state["bad_step"])
        return state

    def _log(self, state: dict[str, Any], flops: float) -> str:
        s, steps = self.job.settings, self.meter.steps
        # The best so far: on a busy machine a single measurement says little.
        self.peak = max(self.peak, _matmul_rate(self.job.device, self.job.dtype))
        rate = self.timed[0] / self.timed[1]
        seconds = of_all(self.world, self.watch.read())
        entry: dict[str, Any] = dict(
            step=self.step,
            time=time.time(),
            loss=state["loss_sum"] / steps,
            lr=learning_rate(s, self.step - 1),
            epoch=self.step * s.batch_size / self.job.store.num_items,
            images_per_second=rate * s.batch_size,
            mfu=rate * flops / (self.peak * self.world.size),
            peak_memory_bytes=peak_memory(self.job.device),
            data_seconds=max(data for data, _ in seconds),
            rank_seconds=[data + forward for data, forward in seconds],
        )
        for name, value in state["term_sums"].items():
            entry[f"loss_{name}"] = value / steps
        norm = self.engine.get_global_grad_norm() if self.norm is None else self.norm
        if norm is not None and math.isfinite(norm):
            entry["grad_norm"] = float(norm)
        if (scale := loss_scale(self.engine)) is not None:
            entry["loss_scale"] = scale
        if self.job.compiled:
            entry["recompiles"] = compile_count() - self.compiled
        if self.costs:
            entry["save_stall_seconds"], entry["save_seconds"] = self.costs[-1]
        self.meter.loss.zero_()
        for term in self.meter.terms.values():
            term.zero_()
        self.meter.steps, self.timed = 0, (0, 0.0)
        if self.world.rank == 0:
            self.job.run.log_metrics(entry)
            self.board.log(self.step, entry)
        if self.step == s.steps:
            self._summarise(entry, steps)
        images, mfu = entry["images_per_second"], entry["mfu"]
        parts = [f"loss {entry['loss']:.4g}", f"{images:.4g} images/s", f"MFU {mfu:.0%}"]
        if self.world.size > 1:
            parts.append(spread(entry["rank_seconds"]))
        return ", ".join(parts)

    def _summarise(self, entry: dict[str, Any], steps: int) -> None:
        """What the end of the run tells; every rank must call it."""
        held = held_bytes(self.engine) | {
            "ema": self.ema.num_bytes + sum(track.num_bytes for track in self.tracks.values())
        }
        of_ranks = of_all(self.world, held)
        fullest = {kind: max(one[kind] for one in of_ranks) for kind in held}
        self.data = {"bytes_per_rank": fullest, "processes": self.world.size}
        self.summary = {
            "loss": f"{entry['loss']:.4g} over the last {count(steps, 'step')}",
            "speed": f"{entry['images_per_second']:.4g} images/s, {entry['mfu']:.0%} of this "
            "machine's measured matrix-product rate",
            "peak memory": f"{entry['peak_memory_bytes'] / 1e9:.2f} GB",
            "kept per process": ", ".join(f"{k} {format_bytes(n)}" for k, n in fullest.items()),
        }
        if self.costs:
            stall, seconds = (sum(each) / len(self.costs) for each in zip(*self.costs, strict=True))
            self.summary["saving"] = (
                f"{stall:.2g} s of training a checkpoint, {seconds:.2g} s more beside it"
            )
        if self.world.size > 1:
            self.summary["ranks"] = spread(entry["rank_seconds"])
        if self.job.compiled:
            self.summary["compiled"] = (
                f"{count(self.compiled, 'graph')}, and {entry['recompiles']} again"
            )

    def _news(self) -> Iterator[Event]:
        """What the board has to say since it was last asked."""
        while self.board is not None and self.board.notes:
            yield Note(self.board.notes.pop(0))

    def _progress(self, text: str) -> Progress:
        return Progress(done=self.step, total=self.job.settings.steps, unit="steps", text=text)

    def _exchange(self, stop: list[int]) -> Iterator[Event]:
        """After each step the ranks tell each other of signals and of savings that are written.

        Returns the number of a signal that any of them received, or 0.
        """
        signalled = stop[0] if stop else 0
        busy = int(bool(self.saving) and self.saving.running)
        if self.world.size > 1:
            # Between the CPUs, so that no GPU is waited for.
            told = torch.tensor([signalled, busy])
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
            signalled, busy = told.tolist()
        if self.saving and not busy:
            yield from self._settle(last=False)
        return signalled

    def _save(self, *, last: bool) -> Iterator[Event]:
        """Begin a checkpoint of this step; with last, end it too."""
        began = time.perf_counter()
        if self.saving:
            self.saving.wait()
            yield from self._settle(last=last)
        meter = self._checked()
        # The last update may have ruined the weights, and with them their average.
        if any(of_all(self.world, not self.ema.is_finite())):
            raise NotFinite(self.step)
        run, step, world = self.job.run, self.step, self.world
        error = from_first(world, lambda: _error_of(lambda: run.begin_save(step)))
        folder = run.saving_path(step)
        weights = whole_weights(self.engine, keep=world.rank == 0)
        average = self.ema.gather()
        averages = {std: track.gather() for std, track in self.tracks.items()}
        moments, facts = optimizer_state.snapshot(
            self.engine, rank=world.rank, world_size=world.size
        )

        def write() -> None:
            if error:
                raise error
            optimizer_state.write_snapshot(
                folder, moments, facts, rank=world.rank, world_size=world.size
            )
            if world.rank == 0:
                write_tensors(folder / "model.safetensors", weights)
                write_tensors(folder / "ema.safetensors", average)
                for std, tensors in averages.items():
                    write_tensors(folder / snapshot_name(std), tensors)
                arrays = self.job.store.autoencoder_arrays
                if arrays:
                    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
                    write_tensors(folder / "autoencoder.safetensors", tensors)

        stall = time.perf_counter() - began
        self.saving = Saving(step, self._meta(meter), write, stall=stall)
        if last:
            self.saving.wait()
            yield from self._settle(last=True)

    def _settle(self, *, last: bool) -> Iterator[Event]:
        """Commit the checkpoint that every rank has written, or say why there is none.

        Raises SitError for a last one, and under --strict.
        """
        saving, run, s = self.saving, self.job.run, self.job.settings
        self.saving = None
        errors = of_all(self.world, saving.error)
        error = next((error for error in errors if error), None)
        if error is None:
            error = from_first(
                self.world, lambda: _error_of(lambda: run.commit_save(saving.step, saving.meta))
            )
        if error is None:
            self.costs.append((saving.stall, saving.seconds))
            if self.world.rank == 0:
                self._prune()
                self._draw_curve()
            return
        if self.world.rank == 0:
            run.clean()
        newest = run.newest()
        message = f"cannot save step {saving.step}: {error.strerror or error}"
        kept = f"the last good checkpoint is {newest}" if newest else "nothing was saved yet"
        if last or s.strict:
            raise SitError(message, f"free some space; {kept}", shared=True)
        yield Warn(f"{message}; training goes on, {kept}")

    def _meta(self, meter: dict[str, Any]) -> dict[str, Any]:
        job = self.job
        return checkpoint_meta(
            job.config,
            job.process,
            model=job.settings.model,
            seed=job.settings.seed,
            ema=job.settings.ema,
            label_dropout=job.settings.label_dropout,
            **({"t_shift": float(job.settings.t_shift)} if job.settings.t_shift else {}),
            precision=precision_name(job.dtype),
            world_size=self.world.size,
            zero=job.zero,
            scaler=scaler_state(self.engine),
            redrawn=job.redrawn,
            images_seen=self.step * job.settings.batch_size,
            latents=latent_facts(job.store),
            meter=meter,
            loss_by_t=dict(sums=meter["sums"], counts=meter["counts"]),
        )

    def _prune(self) -> None:
        """Remove old checkpoints, gigabytes perhaps, while training goes on."""
        if self.pruning:
            self.pruning.join()
        s = self.job.settings
        kept = dict(last=s.keep, every=s.keep_every or 0)
        self.pruning = threading.Thread(target=self.job.run.prune, kwargs=kept, daemon=True)
        self.pruning.start()

    def _draw_curve(self) -> None:
        entries = self.job.run.read_metrics()
        if len(entries) > 1:
            steps, losses = zip(*((e["step"], e["loss"]) for e in entries), strict=True)
            save_curve(self.job.run.path / "loss.png", steps, losses, label="loss")
        self.board.flush()

    def _draw_grid(self) -> Iterator[Event]:
        """A grid of samples of the average weights, from the same noise every time."""
        average = self.ema.gather()  # every rank takes part
        if self.world.rank == 0 and self.grids:
            try:
                self._sample_grid(average)
            except SitError as error:
                self.grids = False  # once is enough
                yield Warn(f"no sample grids: {error.message}")
        dist.barrier()

    @torch.no_grad()
    def _sample_grid(self, average: dict[str, Tensor]) -> None:
        job = self.job
        if self.autoencoder is None:
            self.autoencoder = from_spec(
                job.store.autoencoder,
                job.store.autoencoder_arrays,
                device=job.device,
                dtype=job.dtype,
            )
        network = build_network(job.config, average, job.device)
        classes = max(1, min(job.config.num_classes, GRID_IMAGES // 2))
        columns = GRID_IMAGES // classes
        y = torch.arange(classes).repeat_interleave(columns)
        random = generator(job.settings.seed, "grid")
        noise = torch.randn((len(y), *job.store.latent_shape), generator=random)
        sampler = Ode(solver="heun", steps=GRID_STEPS, shift=float(job.settings.t_shift or 1))
        with autocast(job.device, job.dtype):
            steps = job.process.sample(network, noise.to(job.device), y.to(job.device), sampler)
            *_, (_, x) = steps
        images = decode_latents(self.autoencoder, x, job.store.scaling)
        path = job.run.path / "samples" / f"{job.run.step_path(self.step).name}.png"
        labels = job.store.class_names[:classes] or None
        save_grid(path, images.numpy(), columns=columns, row_labels=labels)
        self.board.picture(self.step, "samples", path)


def _error_of(work: Callable[[], Any]) -> OSError | None:
    """The operating system's error in work(), if there was one."""
    try:
        work()
    except OSError as error:
        return error
    return None


def _result(job: Job, measured: dict[str, str], more: dict[str, Any]) -> Result:
    """The end of a complete run."""
    run, step = job.run, job.run.steps()[-1]
    newest, entries = run.step_path(step), run.read_metrics()
    data = dict(run=str(run.path), step=step, checkpoint=str(newest))
    if entries:
        data |= entries[-1]
    data |= more
    grids = sorted((run.path / "samples").glob("step-*.png"))
    summary = {"steps": f"{step}", **measured}
    if grids:
        summary["grid"] = str(grids[-1])
    return Result(summary=summary, data=data, path=newest, next=_sample_command(run.path))


def _sample_command(run: Path) -> str:
    with contextlib.suppress(SitError):
        if find.newest_run().samefile(run):
            return "sit sample"
    return shlex.join(["sit", "sample", str(run)])


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of update `step` (from 0): linear warm-up, then the schedule."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    left = 1 - (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    if settings.schedule == "linear":
        return settings.lr * left
    return settings.lr * 0.5 * (1 - math.cos(math.pi * left))


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a plain matrix product on this device, measured in a moment."""
    side = 1024 if device.type == "cpu" else 8192
    if device.type == "cpu" and dtype == torch.float16:
        side = 256  # most CPUs emulate it
    a = torch.randn(side, side, device=device).to(dtype)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's allocations, or on a CPU the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are put in the list and end the work after the step; twice at once.

    A second one within ECHO_SECONDS is the same one: torchrun passes on to its processes what a
    terminal or a scheduler has sent them too.
    """
    received: list[int] = []
    first = 0.0

    def note(number: int, frame: object) -> None:
        nonlocal first
        if not received:
            received.append(number)
            first = time.monotonic()
        elif time.monotonic() - first > ECHO_SECONDS:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
            signal.raise_signal(number)

    before: dict[int, Callable | int | None] = {n: signal.signal(n, note) for n in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
