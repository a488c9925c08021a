"""`sit train`: a latent store to a run directory."""

from __future__ import annotations

import contextlib
import math
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sitcli.core.flow import Flow, Ode
from sitcli.errors import Interrupted, SitError, UsageError
from sitcli.events import Event, Note, Progress, Result, Stage, Warn
from sitcli.io import find, rows
from sitcli.io.autoencoder import Autoencoder, decode_latents, from_spec
from sitcli.io.checkpoint import (
    Checkpoint,
    RunDir,
    build_network,
    checkpoint_meta,
    latent_facts,
    open_checkpoint,
    write_tensors,
)
from sitcli.io.config import (
    check_same,
    make_process,
    read_config,
    resolve,
    run_name,
    transformer_config,
    write_config,
)
from sitcli.io.engine import (
    World,
    load_engine,
    make_engine,
    process_group,
    save_engine,
    whole_weights,
)
from sitcli.io.files import make_folder
from sitcli.io.latents import LatentStore
from sitcli.io.launch import (
    autocast,
    generator,
    precision_name,
    resolve_device,
    resolve_precision,
    stream_seed,
)
from sitcli.io.pictures import save_curve, save_grid
from sitcli.io.samples import FILE as SAMPLES_FILE
from sitcli.model.ema import ShardedEma, ema_decay
from sitcli.model.flops import total_cost
from sitcli.model.transformer import Transformer, TransformerConfig
from sitcli.settings import TrainSettings
from sitcli.text import count, format_bytes

LOSS_BINS = 20  # of the velocity loss over t
LOSS_MEMORY = 0.999  # its decay per step
GRID_IMAGES, GRID_STEPS = 16, 20
SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 2.0


def train(settings: TrainSettings) -> Stage:
    """Train until settings.steps, going on from the newest checkpoint of the run.

    Raises UsageError for settings that do not fit the store or the run, SitError when the loss is
    not finite, Interrupted after a signal (with everything saved).
    """
    world = World.from_environment()
    job = prepare(settings, world)
    if world.rank == 0 and settings.latents is None:
        yield Note(f"latents: {job.store.path} (the newest complete store)")
    if job.resume and job.resume.step >= job.settings.steps:
        yield Note(f"all {job.settings.steps} steps of {job.run.path} are done already")
        return _result(job, {})
    with contextlib.ExitStack() as stack:
        if world.rank == 0:
            stack.enter_context(job.owned_run())
        stack.enter_context(process_group(world, job.device))
        # The run directory is there and is ours; what the first rank measured holds for all.
        agreed = [job.dtype]
        dist.broadcast_object_list(agreed, device=job.device)
        job = replace(job, dtype=agreed[0])
        stop = stack.enter_context(_signals_noted())
        trainer = Trainer(job, world)
        try:
            for event in trainer.run(stop):
                if world.rank == 0:
                    yield event
        finally:
            trainer.close()
        return _result(job, trainer.summary)


def plan(settings: TrainSettings) -> Result:
    """What `train` would do; touches nothing."""
    world = World.from_environment()
    job = prepare(settings, world)
    s, cost = job.settings, total_cost(job.config)
    done = job.resume.step if job.resume else 0
    to_go = _step_flops(cost.macs, s.batch_size) * (s.steps - done)
    # In fp32: our weights and their average, and DeepSpeed's weights and Adam's two moments;
    # ZeRO 1 and 2 write the weights of the module and of the optimizer.
    checkpoint_bytes = cost.params * 4 * (6 if s.zero in ("1", "2") else 5)
    summary = {
        "latents": f"{job.store.path}, {job.store.num_items} items {job.store.latent_shape}",
        "model": f"{s.model}, {s.block} blocks, {cost.params / 1e6:.1f} M parameters, "
        f"{cost.macs / 1e9:.2f} GMACs",
        "objective": job.process.describe(),
        "steps": f"{done} done, {s.steps} in all, batch {s.batch_size}, lr {s.lr:g}",
        "cost": f"{to_go / 1e15:.3g} PFLOP to go",
        "running": f"{job.device}, {precision_name(job.dtype)}, ZeRO {s.zero}, "
        f"{world.size} process(es)",
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
        checkpoint_bytes=checkpoint_bytes,
        precision=precision_name(job.dtype),
    )
    return Result(summary=summary, data=data, next="the same command without --dry-run")


@dataclass(frozen=True)
class Job:
    """Settings resolved against store, device and run directory."""

    settings: TrainSettings
    store: LatentStore
    config: TransformerConfig
    process: Flow
    device: torch.device
    dtype: torch.dtype
    run: RunDir
    resume: Checkpoint | None

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


def prepare(settings: TrainSettings, world: World) -> Job:
    """Check everything that can be checked before anything is written."""
    device = resolve_device(settings.device)
    if device.type == "mps":
        raise UsageError("training on mps is not supported by DeepSpeed", "use --device cpu")
    store = LatentStore.open(settings.latents or find.newest_store())
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
    if resume and resume.latents["fingerprint"] != store.fingerprint:
        raise UsageError(
            f"{run.path} was trained on other latents than {store.path}",
            f"name them with --latents {resume.latents['store']}, or another --out",
        )
    if resume and resume.meta["world_size"] != world.size:
        saved = resume.meta["world_size"]
        raise UsageError(
            f"{resume.path} was saved by {saved} process(es), and cannot go on with {world.size}",
            f"launch {saved} of them (--nproc_per_node {saved}), or name another --out",
        )
    # DeepSpeed keeps the optimizer's state alike in stages 1 and 2 only.
    if resume and {resume.meta["zero"], int(settings.zero)} not in ({0}, {1}, {2}, {3}, {1, 2}):
        raise UsageError(
            f"{resume.path} was saved with --zero {resume.meta['zero']}, and cannot go on with "
            f"--zero {settings.zero}",
            "leave --zero as it was, or name another --out",
        )
    return Job(settings, store, config, process, device, dtype, run, resume)


class Draw(NamedTuple):
    """The random part of one step, for the whole global batch B: a function of (seed, step)."""

    items: np.ndarray  #  (B,) which images
    flip: np.ndarray  #   (B,) bool
    hide: Tensor  #       (B,) bool: train without the label
    t: Tensor  #          (B,)
    eps: Tensor  #        (B, C, h, w)
    posterior: Tensor | None  # (B, C, h, w), where the latents have a posterior to draw from


class Order:
    """Every image once an epoch, in an order that is a function of (seed, epoch)."""

    def __init__(self, num_items: int, seed: int) -> None:
        self.num_items, self.seed = num_items, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def batch(self, step: int, size: int) -> np.ndarray:
        """Items of positions step*size .. (step+1)*size in the endless sequence of epochs."""
        positions = np.arange(step * size, (step + 1) * size)
        epochs, places = np.divmod(positions, self.num_items)
        items = np.empty(size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            items[here] = self._permutation(int(epoch))[places[here]]
        return items

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            random = generator(self.seed, "epoch", epoch)
            self._epoch, self._order = (
                epoch,
                torch.randperm(self.num_items, generator=random).numpy(),
            )
        return self._order


class Meter:
    """Sums over the steps since the last log line, and the velocity loss over t.

    Kept on the device so that no step waits for the host; saved with the checkpoint.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.steps = 0
        self.bad_step = torch.full((), -1, dtype=torch.long, device=device)
        self.sums = torch.zeros(LOSS_BINS, device=device)
        self.counts = torch.zeros(LOSS_BINS, device=device)

    def add(self, loss: Tensor) -> None:
        """A micro-batch's share of the step's mean loss."""
        self.loss += loss.detach()

    def add_velocity(self, t: Tensor, velocity: Tensor) -> None:
        """Per-sample velocity losses (b,) at times t (b,)."""
        bins = (t * LOSS_BINS).long().clamp(max=LOSS_BINS - 1)
        self.sums.index_add_(0, bins, velocity)
        self.counts.index_add_(0, bins, torch.ones_like(velocity))

    def end_step(self, step: int) -> None:
        self.steps += 1
        first = (self.bad_step < 0) & ~torch.isfinite(self.loss)
        self.bad_step = torch.where(first, step, self.bad_step)
        self.sums *= LOSS_MEMORY
        self.counts *= LOSS_MEMORY

    def reduced(self, world: World) -> dict[str, Any]:
        """Over all ranks, as plain numbers; every rank must call it."""
        packed = torch.cat([self.loss.view(1) / world.size, self.sums, self.counts])
        bad = self.bad_step.clone()
        if world.size > 1:
            dist.all_reduce(packed)
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        loss, sums, counts = packed.cpu().split([1, LOSS_BINS, LOSS_BINS])
        return dict(
            loss_sum=float(loss),
            steps=self.steps,
            bad_step=int(bad),
            sums=sums.tolist(),
            counts=counts.tolist(),
        )

    def load(self, state: dict[str, Any], world: World) -> None:
        """Take up what `reduced` returned; the bins go to rank 0 alone."""
        self.loss.fill_(state["loss_sum"])
        self.steps = state["steps"]
        if world.rank == 0:
            self.sums.copy_(torch.tensor(state["sums"]))
            self.counts.copy_(torch.tensor(state["counts"]))


class Trainer:
    """The training loop over a DeepSpeed engine."""

    def __init__(self, job: Job, world: World) -> None:
        self.job, self.world = job, world
        s = job.settings
        torch.manual_seed(stream_seed(s.seed, "weights"))
        network = Transformer(job.config)
        self.engine = make_engine(
            network,
            device=job.device,
            dtype=job.dtype,
            zero=int(s.zero),
            micro_batch=s.batch_size // (world.size * s.accumulate),
            accumulate=s.accumulate,
            world=world,
            clip=s.clip,
            lr=s.lr,
            beta2=s.beta2,
            weight_decay=s.weight_decay,
        )
        self.ema = ShardedEma(self.engine.module, rank=world.rank, world_size=world.size)
        self.order = Order(job.store.num_items, s.seed)
        self.labels = torch.from_numpy(job.store.labels)
        self.meter = Meter(job.device)
        self.step = 0
        self.grids = True
        self.autoencoder: Autoencoder | None = None
        self.board: Any = None
        self.timed = (0, 0.0)  # steps of this process since the last log line, and their seconds
        self.peak = 0.0  # operations a second of a plain matrix product here
        self.summary: dict[str, str] = {}
        if job.resume:
            load_engine(self.engine, job.resume.path)
            self.ema.load(job.resume.weights("ema"))
            self.meter.load(job.resume.meta["meter"], world)
            self.step = job.resume.step

    def run(self, stop: list[int]) -> Iterator[Event]:
        """All steps that are left; `stop` receives the number of a signal."""
        s, run = self.job.settings, self.job.run
        if self.world.rank == 0:
            run.cut_metrics(self.step)
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run.path / "tb"), purge_step=self.step + 1)
        yield Note(f"run: {run.path}" + (f", going on after step {self.step}" if self.step else ""))
        flops = _step_flops(total_cost(self.job.config).macs, s.batch_size)
        yield self._progress("")
        text = ""
        while self.step < s.steps:
            began = time.perf_counter()
            self.train_step()
            logged = self.step % s.log_every == 0 or self.step == s.steps
            # A GPU is behind the host: the check waits for it, within the time that is taken. On
            # a CPU it costs nothing, and names the step at once.
            state = self._checked() if logged or self.job.device.type == "cpu" else {}
            steps, seconds = self.timed
            self.timed = (steps + 1, seconds + time.perf_counter() - began)
            if logged:
                text = self._log(state, flops)
            yield self._progress(text)
            signalled = self._signalled(stop)
            if self.step % s.save_every == 0 or self.step == s.steps or signalled:
                self._save()
            if s.sample_every and (self.step % s.sample_every == 0 or self.step == s.steps):
                yield from self._draw_grid()
            if signalled:
                raise Interrupted(
                    f"stopped by a signal, saved at step {self.step} of {s.steps} in {run.path}",
                    "the same command goes on from there",
                    signal_number=signalled,
                )

    def close(self) -> None:
        """Flush what is buffered."""
        if self.board is not None:
            self.board.close()

    def train_step(self) -> None:
        """One optimizer step on this rank's share of the global batch."""
        job, s = self.job, self.job.settings
        draw = self._draw(self.step)
        mine = range(s.batch_size)[self.world.slice(s.batch_size)]
        micro = len(mine) // s.accumulate
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(s, self.step)
        for start in range(mine.start, mine.stop, micro):
            part = slice(start, start + micro)
            posterior = None if draw.posterior is None else draw.posterior[part]
            x = job.store.batch(draw.items[part], flip=draw.flip[part], noise=posterior)
            y = self.labels[draw.items[part]].masked_fill(draw.hide[part], job.config.null_class)
            x, y, t, eps = (_to_device(a, job.device) for a in (x, y, draw.t[part], draw.eps[part]))
            loss = job.process.loss(self.engine, x, y, t=t, eps=eps)
            mean = loss.loss.mean()
            self.engine.backward(mean)
            self.engine.step()
            self.meter.add(mean / s.accumulate)
            self.meter.add_velocity(t, loss.velocity)
        self.ema.update(ema_decay(self.step, decay=s.ema, warmup=s.ema_warmup))
        self.step += 1
        self.meter.end_step(self.step)

    def _draw(self, step: int) -> Draw:
        s, store = self.job.settings, self.job.store
        size = s.batch_size
        shape = (size, *store.latent_shape)
        random = generator(s.seed, "step", step)
        eps = torch.randn(shape, generator=random)
        t = self.job.process.draw_times(size, random)
        hide = torch.rand(size, generator=random) < s.label_dropout
        flip = torch.rand(size, generator=random) < (0.5 if s.flip else 0.0)
        drawn = store.kind == "moments" and s.posterior == "sample"
        return Draw(
            items=self.order.batch(step, size),
            flip=flip.numpy(),
            hide=hide if store.num_classes else torch.ones_like(hide),
            t=t,
            eps=eps,
            posterior=torch.randn(shape, generator=random) if drawn else None,
        )

    def _checked(self) -> dict[str, Any]:
        """The meter's state. SitError if a loss was not finite."""
        state = self.meter.reduced(self.world)
        if state["bad_step"] >= 0:
            newest = self.job.run.newest()
            kept = f"the last good checkpoint is {newest}" if newest else "nothing was saved yet"
            raise SitError(
                f"the loss was not finite at step {state['bad_step']}; {kept}",
                "go on with a lower --lr, --clip 1, or --precision fp32, under another --out",
            )
        return state

    def _log(self, state: dict[str, Any], flops: float) -> str:
        s, steps = self.job.settings, self.meter.steps
        # The best so far: on a busy machine a single measurement says little.
        self.peak = max(self.peak, _matmul_rate(self.job.device, self.job.dtype))
        rate = self.timed[0] / self.timed[1]
        entry = dict(
            step=self.step,
            loss=state["loss_sum"] / steps,
            lr=learning_rate(s, self.step - 1),
            epoch=self.step * s.batch_size / self.job.store.num_items,
            images_per_second=rate * s.batch_size,
            mfu=rate * flops / (self.peak * self.world.size),
            peak_memory_bytes=_peak_memory(self.job.device),
        )
        norm = self.engine.get_global_grad_norm()
        if norm is not None and math.isfinite(norm):
            entry["grad_norm"] = float(norm)
        self.meter.loss.zero_()
        self.meter.steps, self.timed = 0, (0, 0.0)
        if self.world.rank == 0:
            self.job.run.log_metrics(entry)
            for name, value in entry.items():
                if name != "step":
                    self.board.add_scalar(name, value, self.step)
        self.summary = {
            "loss": f"{entry['loss']:.4g} over the last {count(steps, 'step')}",
            "speed": f"{entry['images_per_second']:.4g} images/s, {entry['mfu']:.0%} of this "
            "machine's measured matrix-product rate",
            "peak memory": f"{entry['peak_memory_bytes'] / 1e9:.2f} GB",
        }
        images, mfu = entry["images_per_second"], entry["mfu"]
        return f"loss {entry['loss']:.4g}, {images:.4g} images/s, MFU {mfu:.0%}"

    def _progress(self, text: str) -> Progress:
        return Progress(done=self.step, total=self.job.settings.steps, unit="steps", text=text)

    def _signalled(self, stop: list[int]) -> int:
        """A signal that any rank received; ranks on GPUs ask each other every tenth step only."""
        if self.world.size == 1:
            return stop[0] if stop else 0
        if self.job.device.type != "cpu" and self.step % 10:
            return 0
        number = torch.tensor(stop[0] if stop else 0, device=self.job.device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number)

    def _save(self) -> None:
        job, run = self.job, self.job.run
        meter = self._checked()  # never save a state that a NaN went into
        folder = run.saving_path(self.step)
        try:
            if self.world.rank == 0:
                run.begin_save(self.step)
            dist.barrier()
            save_engine(self.engine, folder)
            weights, average = whole_weights(self.engine), self.ema.gather()
            if self.world.rank == 0:
                write_tensors(folder / "model.safetensors", weights)
                write_tensors(folder / "ema.safetensors", average)
                arrays = job.store.autoencoder_arrays
                if arrays:
                    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
                    write_tensors(folder / "autoencoder.safetensors", tensors)
            dist.barrier()
            if self.world.rank == 0:
                run.commit_save(self.step, self._meta(meter))
                run.prune(job.settings.keep)
                self._draw_curve()
        except OSError as error:
            run.clean()
            newest = run.newest()
            raise SitError(
                f"cannot save step {self.step}: {error.strerror or error}",
                f"free some space; the last good checkpoint is {newest}" if newest else "",
            ) from None
        dist.barrier()

    def _meta(self, meter: dict[str, Any]) -> dict[str, Any]:
        job = self.job
        return checkpoint_meta(
            job.config,
            job.process,
            model=job.settings.model,
            seed=job.settings.seed,
            ema=job.settings.ema,
            label_dropout=job.settings.label_dropout,
            precision=precision_name(job.dtype),
            world_size=self.world.size,
            zero=int(job.settings.zero),
            images_seen=self.step * job.settings.batch_size,
            latents=latent_facts(job.store),
            meter=meter,
            loss_by_t=dict(sums=meter["sums"], counts=meter["counts"]),
        )

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
        sampler = Ode(solver="heun", steps=GRID_STEPS)
        with autocast(job.device, job.dtype):
            steps = job.process.sample(network, noise.to(job.device), y.to(job.device), sampler)
            *_, (_, x) = steps
        images = decode_latents(self.autoencoder, x, job.store.scaling)
        path = job.run.path / "samples" / f"{job.run.step_path(self.step).name}.png"
        labels = job.store.class_names[:classes] or None
        save_grid(path, images.numpy(), columns=columns, row_labels=labels)


def _result(job: Job, measured: dict[str, str]) -> Result:
    """The end of a complete run."""
    run, step = job.run, job.run.steps()[-1]
    newest, entries = run.step_path(step), run.read_metrics()
    data = dict(run=str(run.path), step=step, checkpoint=str(newest))
    if entries:
        data |= entries[-1]
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


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    # From pinned memory the copy does not wait for the GPU's earlier work.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _step_flops(macs: int, batch: int) -> float:
    """Operations of a training step: forward and backward are three forwards of 2 per MAC."""
    return 3 * 2 * macs * batch


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a plain matrix product on this device, measured in a moment."""
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device).to(dtype)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _peak_memory(device: torch.device) -> int:
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
