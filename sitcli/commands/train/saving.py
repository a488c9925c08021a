"""A checkpoint written beside training, committed once every rank has written its part, pruned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch

from sitcli.commands.train.job import Job
from sitcli.commands.train.meter import Meter, NotFinite
from sitcli.commands.train.resume import kept_settings
from sitcli.engine import optimizer_state
from sitcli.engine.engine import whole_weights
from sitcli.engine.scaler import scaler_state
from sitcli.errors import SitError
from sitcli.events import Event, Warn
from sitcli.machine.devices import precision_name
from sitcli.machine.ranks import gathered, on_rank_0
from sitcli.machine.seeds import UNRECORDED
from sitcli.machine.world import World
from sitcli.model.ema import ShardedEma
from sitcli.model.lora import file_name
from sitcli.runs.meta import checkpoint_meta, latent_facts
from sitcli.runs.run_dir import snapshot_name
from sitcli.storage.tensors import identity, write_tensors


class Saving:
    """A checkpoint on its way to the disk, in a thread, while training goes on.

    step, meta: of the checkpoint; error: why it could not be written; stall: seconds for which
    training stood still; seconds: duration of the writing.
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
        """Whether the thread is still writing."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the checkpoint is written, or could not be."""
        self._thread.join()


class Saver:
    """Saves a run's checkpoints, one at a time; every rank must call `save` and `settle`.

    committed() is called on rank 0 after each checkpoint that was committed.
    costs: for each committed checkpoint, the seconds for which training stood still and those of
    writing beside it.
    """

    def __init__(
        self,
        job: Job,
        world: World,
        engine: Any,
        *,
        ema: ShardedEma,
        tracks: dict[float, ShardedEma],
        meter: Meter,
        committed: Callable[[], None],
    ) -> None:
        self.job, self.world, self.engine = job, world, engine
        self.ema, self.tracks, self.meter = ema, tracks, meter
        self.committed = committed
        self.saving: Saving | None = None
        self.costs: list[tuple[float, float]] = []
        self._pruning: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing a checkpoint."""
        return self.saving is not None and self.saving.running

    @cached_property
    def _base(self) -> str | None:
        """What tells the base of the adapters from others; the file does not change."""
        return identity(self.job.run.base)

    def save(self, step: int, *, last: bool) -> Iterator[Event]:
        """Begin the checkpoint of `step`; with `last`, also wait until it is committed.

        Raises NotFinite if the losses or the weights are not finite, and SitError if a checkpoint
        cannot be written that is the last one or under --strict.
        """
        began = time.perf_counter()
        yield from self.settle(last=last)
        state = self.meter.checked(self.world)
        # The last update may have ruined the weights, and with them their average.
        if any(gathered(self.world, not self.ema.is_finite())):
            raise NotFinite(step)
        run = self.job.run
        error = on_rank_0(self.world, lambda: error_of(lambda: run.begin_save(step)))
        write, meta, logged = self._snapshot(step), self._meta(step, state), run.metrics_bytes()

        def work() -> None:
            if error:
                raise error
            write()
            if self.world.rank == 0:
                # A resumed training cuts the log to the steps up to this one, and no shorter.
                meta["metrics"] = dict(bytes=logged, crc32=run.metrics_checksum(logged))

        stall = time.perf_counter() - began
        self.saving = Saving(step, meta, work, stall=stall)
        if last:
            yield from self.settle(last=True)

    def settle(self, *, last: bool) -> Iterator[Event]:
        """Wait for the checkpoint that is being written, and commit it or warn that there is none.

        Raises SitError instead if it is the last one, or under --strict.
        """
        if self.saving is None:
            return
        self.saving.wait()
        saving, run = self.saving, self.job.run
        self.saving = None
        errors = gathered(self.world, saving.error)
        error = next((error for error in errors if error), None)
        if error is None:
            error = on_rank_0(
                self.world, lambda: error_of(lambda: run.commit_save(saving.step, saving.meta))
            )
        if error is None:
            self.costs.append((saving.stall, saving.seconds))
            if self.world.rank == 0:
                self._prune()
                self.committed()
            return
        if self.world.rank == 0:
            run.clean()
        message = f"cannot save step {saving.step}: {error.strerror or error}"
        kept = last_good(self.job)
        if last or self.job.settings.strict:
            raise SitError(message, f"free some space; {kept}", shared=True)
        yield Warn(f"{message}; training goes on, {kept}")

    def close(self) -> None:
        """Wait for the checkpoint that is being written and for those that are being removed."""
        if self.saving is not None:
            self.saving.wait()  # it must not write into a folder that is removed
        if self._pruning is not None:
            self._pruning.join()

    def _snapshot(self, step: int) -> Callable[[], None]:
        """Copy all that the checkpoint holds; returns the function that writes it."""
        world, folder = self.world, self.job.run.saving_path(step)
        adapted = self.job.settings.lora is not None  # the rest is in the run's base
        weights = whole_weights(self.engine, keep=world.rank == 0, trained=adapted)
        average = self.ema.gather(trained=adapted)
        if adapted:
            weights, average = (
                {file_name(name): tensor for name, tensor in state.items()}
                for state in (weights, average)
            )
        averages = {std: track.gather() for std, track in self.tracks.items()}
        moments, facts = optimizer_state.snapshot(
            self.engine, rank=world.rank, world_size=world.size
        )

        def write() -> None:
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

        return write

    def _meta(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        """The facts of the checkpoint; state is the meter's."""
        job, s, history = self.job, self.job.settings, self.job.history.as_plain()
        return checkpoint_meta(
            job.config,
            job.process,
            settings=kept_settings(s),
            model=s.model,
            seed=s.seed,
            ema=s.ema,
            label_dropout=s.label_dropout,
            **({"t_shift": float(s.t_shift)} if s.t_shift else {}),
            precision=precision_name(job.dtype),
            world_size=self.world.size,
            zero=job.zero,
            scaler=scaler_state(self.engine),
            redrawn=job.redrawn,
            **({"streams": job.streams_name} if job.streams_name != UNRECORDED else {}),
            images_seen=job.images_at(step),
            **({"history": history} if history else {}),
            **({"init": job.init} if job.init else {}),
            **({"lora": dict(rank=s.lora, base=self._base)} if s.lora else {}),
            **({"trained": sorted(job.trained)} if job.trained is not None else {}),
            latents=latent_facts(job.store),
            meter=state,
            loss_by_t=dict(sums=state["sums"], counts=state["counts"]),
        )

    def _prune(self) -> None:
        """Remove old checkpoints, gigabytes perhaps, while training goes on."""
        if self._pruning:
            self._pruning.join()
        s = self.job.settings
        kept = dict(last=s.keep, every=s.keep_every or 0)
        self._pruning = threading.Thread(target=self.job.run.prune, kwargs=kept, daemon=True)
        self._pruning.start()


def last_good(job: Job) -> str:
    """A sentence for people: which checkpoint the run can go on from."""
    newest = job.run.newest()
    return f"the last good checkpoint is {newest}" if newest else "nothing was saved yet"


def error_of(work: Callable[[], Any]) -> OSError | None:
    """The operating system's error in work(), if there was one."""
    try:
        work()
    except OSError as error:
        return error
    return None
