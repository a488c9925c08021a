"""The training loop: a step, the averages of the weights, and when to log, save and stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from sitcli.commands.train.adapters import add_adapters
from sitcli.commands.train.batches import Batch, Batches
from sitcli.commands.train.feed import Feed
from sitcli.commands.train.job import Job
from sitcli.commands.train.logbook import Logbook
from sitcli.commands.train.meter import Meter, NotFinite, Stopwatch
from sitcli.commands.train.recipe import learning_rate
from sitcli.commands.train.saving import Saver, last_good
from sitcli.core.objective import training_loss, weighted
from sitcli.engine import optimizer_state
from sitcli.engine.engine import gradient_norm, make_engine, own_linear_function
from sitcli.engine.scaler import load_scaler_state
from sitcli.errors import Interrupted
from sitcli.events import Event, Note, Progress, Warn
from sitcli.latents.unchanged import StoreChanged
from sitcli.machine.ranks import all_agree
from sitcli.machine.world import World
from sitcli.model.compile import compile_blocks, compile_count
from sitcli.model.ema import ShardedEma, ema_decay
from sitcli.model.lora import file_name
from sitcli.model.power_ema import TRACKED_STDS, power_decay, power_exponent
from sitcli.model.transformer import Route, Transformer
from sitcli.runs.run_dir import snapshot_name
from sitcli.storage.tensors import write_tensors


class Trainer:
    """The training loop over a DeepSpeed engine, from the job's checkpoint or the beginning."""

    def __init__(self, job: Job, world: World) -> None:
        self.job, self.world = job, world
        s = job.settings
        torch.manual_seed(s.seed)  # of which it takes the low 32 bits
        network = self._network()
        self.until_closed = contextlib.ExitStack()
        self.until_closed.enter_context(own_linear_function())
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
        self.tracks = {
            std: ShardedEma(self.engine.module, rank=world.rank, world_size=world.size)
            for std in (TRACKED_STDS if s.power_ema else ())
        }
        self.meter, self.watch = Meter(job.device, job.extras.names), Stopwatch(job.device)
        self.step = 0
        self.lost_store = False
        averages = dict(ema=self.ema, tracks=self.tracks, meter=self.meter)
        self.logbook = Logbook(job, world, self.engine, watch=self.watch, **averages)
        self.saver = Saver(job, world, self.engine, committed=self.logbook.draw_curve, **averages)
        if job.resume:
            self._restore()
        self.feed = Feed(Batches(job, world).of_step, self.step, s.steps)

    def _network(self) -> Transformer:
        """The network with the weights to go on or to begin from, and what is trained of it."""
        job = self.job
        network = Transformer(job.config)
        network.checkpoint_every = job.checkpoint_every
        if job.settings.lora:
            network.load_state_dict(
                job.resume.base(verify=True) if job.resume else job.start.of(network)
            )
            if not job.resume and self.world.rank == 0:
                write_tensors(job.run.base, network.state_dict())
            add_adapters(network, job.settings.lora)
            if job.resume:
                network.load_state_dict(self._of_file(network, "model"), strict=False)
        elif job.resume:
            network.load_state_dict(job.resume.weights("model", verify=True))
        elif job.start:
            network.load_state_dict(job.start.of(network))
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(job.trained is None or file_name(name) in job.trained)
        return network

    def _of_file(self, network: Transformer, which: str) -> dict[str, torch.Tensor]:
        """The tensors of a file of the checkpoint, by their names in the network."""
        resume = self.job.resume
        tensors = resume.tensors(resume.file_of(which).name, verify=True)
        names = [name for name, _ in network.named_parameters()]
        return {name: tensors[file_name(name)] for name in names if file_name(name) in tensors}

    def _restore(self) -> None:
        """Restore the optimizer's state, the averages and the meter from the job's checkpoint."""
        resume = self.job.resume
        all_agree(self.world, lambda: optimizer_state.restore(self.engine, resume.path))
        self.ema.load(self._of_file(self.engine.module, "ema"))
        for std, track in self.tracks.items():
            track.load(resume.tensors(snapshot_name(std), verify=True))
        self.meter.load(resume.meta["meter"], self.world)
        load_scaler_state(self.engine, resume.meta.get("scaler", {}))
        self.step = resume.step

    def run(self, stop: list[int]) -> Iterator[Event]:
        """Train all steps that are left; a signal puts its number into `stop`.

        Raises NotFinite, Interrupted after a signal (with everything saved), StoreChanged if a
        store is overwritten meanwhile, and SitError if the last checkpoint cannot be written.
        """
        run = self.job.run
        if self.world.rank == 0:
            self.logbook.open(self.step)
            yield from self.logbook.news()
        yield Note(f"run: {run.path}" + (f", going on after step {self.step}" if self.step else ""))
        yield self._progress("")
        try:
            yield from self._steps(stop)
        except NotFinite as failure:
            yield from self.saver.settle(last=False)  # was begun before the bad step, and is good
            failure.message += f"; {last_good(self.job)}"
            raise
        except StoreChanged as failure:
            # All steps so far were of the latents as they were. Several ranks cannot agree to save:
            # the others wait for this one in the middle of a step.
            if self.world.size == 1:
                yield from self.saver.settle(last=False)
                if run.newest() != run.step_path(self.step) and self.step:
                    yield from self.saver.save(self.step, last=True)
            failure.message += f"; {last_good(self.job)}"
            raise

    def _steps(self, stop: list[int]) -> Iterator[Event]:
        s, text = self.job.settings, ""
        while self.step < s.steps:
            began = time.perf_counter()
            self.train_step()
            logged = self._is_logged(self.step)
            # On a GPU the check waits for the device, within the time that is measured; hence only
            # on logged steps. On a CPU it costs nothing, and finds a bad step at once.
            on_cpu = self.job.device.type == "cpu"
            state = self.meter.checked(self.world) if logged or on_cpu else {}
            self.logbook.timed(time.perf_counter() - began)
            if logged:
                text = self.logbook.log(self.step, state, self.saver)
                yield from self.logbook.news()
                yield from self._lost_store()
            yield self._progress(text)
            signalled = yield from self._exchange(stop)
            last = self.step == s.steps or bool(signalled)
            if self.step % s.save_every == 0 or last:
                yield from self.saver.save(self.step, last=last)
            if s.sample_every and (self.step % s.sample_every == 0 or self.step == s.steps):
                yield from self.logbook.draw_grid(self.step)
            if signalled:
                raise Interrupted(
                    f"stopped by a signal, saved at step {self.step} of {s.steps} in "
                    f"{self.job.run.path}",
                    "the same command goes on from there",
                    signal_number=signalled,
                )

    def _lost_store(self) -> Iterator[Event]:
        """Warn once if the path of a store has come to name another file, or none."""
        change = "" if self.lost_store or self.world.rank else self.job.store.replaced()
        if change:
            self.lost_store = True
            names = ", ".join(map(str, self.job.store.paths))
            yield Warn(
                f"{names} was {change} at step {self.step} or before: this run goes on with the "
                "file it began with, and can be resumed on the same latents only"
            )

    def _is_logged(self, step: int) -> bool:
        return step % self.job.settings.log_every == 0 or step == self.job.settings.steps

    def close(self) -> None:
        """End the threads, flush what is buffered and free the engine's memory."""
        self.feed.close()
        self.saver.close()
        self.logbook.close()
        self.engine.destroy()
        self.until_closed.close()

    def train_step(self) -> None:
        """One optimizer step on this rank's share of the global batch."""
        job, s = self.job, self.job.settings
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(s, self.step, since=job.history.schedule_from)
        began = time.perf_counter()
        batches = self.feed.get(self.step)
        self.watch.data += time.perf_counter() - began
        for batch in batches:
            self._micro_step(batch.to(job.device))
        self.ema.update(ema_decay(self.step, decay=s.ema, warmup=s.ema_warmup))
        for std, track in self.tracks.items():
            track.update(power_decay(self.step, power_exponent(std)))
        self.step += 1
        self.watch.steps += 1
        self.meter.end_step(self.step)
        if len(self.logbook.graphs) == 1:
            self.logbook.graphs.append(compile_count())

    def _micro_step(self, batch: Batch) -> None:
        """Forward and backward of a micro-batch; the last one of a step updates the weights."""
        job = self.job
        x, y, t, eps, tokens_kept, features = batch
        self.watch.start()
        loss, terms = training_loss(
            job.process,
            self.engine,
            x,
            y,
            t=t,
            eps=eps,
            extras=job.extras,
            route=tokens_kept if tokens_kept is None else Route(tokens_kept, *job.routing[1:]),
            features=features,
        )
        total = weighted(loss.loss, terms, job.extras).mean()
        self.watch.stop()
        self.engine.backward(total)
        whole = self.engine.is_gradient_accumulation_boundary()  # all micro-batches are in
        if whole and self._is_logged(self.step + 1):
            self.logbook.norm = gradient_norm(self.engine)
        self.engine.step()
        self.meter.add(loss.loss.mean(), terms, total, parts=job.settings.accumulate)
        self.meter.add_velocity(t, loss.velocity)

    def _progress(self, text: str) -> Progress:
        return Progress(done=self.step, total=self.job.settings.steps, unit="steps", text=text)

    def _exchange(self, stop: list[int]) -> Iterator[Event]:
        """The number of a signal that any rank received, or 0.

        Called after each step. Commits the checkpoint that all ranks have finished writing.
        """
        signalled, busy = stop[0] if stop else 0, int(self.saver.busy)
        if self.world.size > 1:
            # Exchanged between the CPUs, so that no GPU is waited for.
            told = torch.tensor([signalled, busy])
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
            signalled, busy = told.tolist()
        if not busy:
            yield from self.saver.settle(last=False)
        return signalled
