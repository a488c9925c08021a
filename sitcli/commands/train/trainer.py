"""The training loop: a step, its batches, the averages of the weights."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sitcli.autoencoders.base import Autoencoder, decode_latents
from sitcli.autoencoders.load import from_spec
from sitcli.commands.train.board import Board
from sitcli.commands.train.job import Job
from sitcli.commands.train.logbook import GRID_IMAGES, GRID_STEPS
from sitcli.commands.train.meter import Meter, NotFinite, Stopwatch
from sitcli.commands.train.recipe import learning_rate, make_times
from sitcli.commands.train.run_settings import as_plain
from sitcli.commands.train.saving import Saving, error_of
from sitcli.core.flow import Ode
from sitcli.core.objective import to_tokens, training_loss, weighted
from sitcli.engine import optimizer_state
from sitcli.engine.engine import gradient_norm, held_bytes, make_engine, whole_weights
from sitcli.engine.scaler import load_scaler_state, loss_scale, scaler_state
from sitcli.errors import Interrupted, SitError
from sitcli.events import Event, Note, Progress, Warn
from sitcli.images.curves import save_curve
from sitcli.images.grid import save_grid
from sitcli.latents.feed import Draw, Feed, Order, draw_step
from sitcli.machine.devices import autocast, matmul_rate, peak_memory, precision_name
from sitcli.machine.ranks import from_first, of_all, together
from sitcli.machine.seeds import generator, stream_seed
from sitcli.machine.world import World
from sitcli.model.compile import compile_blocks, compile_count
from sitcli.model.ema import ShardedEma, ema_decay
from sitcli.model.power_ema import TRACKED_STDS, power_decay, power_exponent
from sitcli.model.transformer import Route, Transformer
from sitcli.runs.checkpoint import build_network
from sitcli.runs.meta import checkpoint_meta, latent_facts
from sitcli.runs.run_dir import snapshot_name
from sitcli.storage.tensors import write_tensors
from sitcli.text import count, format_bytes, spread


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
        self.peak = max(self.peak, matmul_rate(self.job.device, self.job.dtype))
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
        error = from_first(world, lambda: error_of(lambda: run.begin_save(step)))
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
                self.world, lambda: error_of(lambda: run.commit_save(saving.step, saving.meta))
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
