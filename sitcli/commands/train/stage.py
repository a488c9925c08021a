"""`sit train`: a latent store to a run directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from sitcli.commands.train.init import fates_lines
from sitcli.commands.train.job import Job, prepare
from sitcli.commands.train.meter import NotFinite
from sitcli.commands.train.report import plan_of, result_of
from sitcli.commands.train.resume import stores_of_run
from sitcli.commands.train.trainer import Trainer
from sitcli.engine.engine import join_group
from sitcli.errors import SitError
from sitcli.events import Event, Note, Result, Stage, Warn
from sitcli.machine.devices import tune_cpu
from sitcli.machine.ranks import all_agree, gathered, on_rank_0, process_group
from sitcli.machine.signals import signals_noted
from sitcli.machine.world import World, planned_size, world_for
from sitcli.settings.option import Said
from sitcli.settings.train import TrainSettings


def train(settings: TrainSettings, said: Said | None = None) -> Stage:
    """Train until settings.steps, going on from the newest checkpoint of the run.

    said: the options that were given, see `prepare`.
    Runs in as many processes as a launcher started, or alone; rank 0 yields the events. Raises
    UsageError for settings that do not fit the store or the run, SitError when the loss is not
    finite or a last checkpoint cannot be written, Interrupted after a signal (with everything
    saved).
    """
    world = world_for(gpus=settings.gpus, procs=settings.procs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            process_group(world, backend=None if torch.cuda.is_available() else "gloo")
        )
        job = all_agree(world, lambda: prepare(settings, world, said))
        # All ranks use the dtype that rank 0 chose.
        job = replace(job, dtype=on_rank_0(world, lambda: job.dtype))
        _check_one_store(job, world)
        if world.rank == 0 and settings.latents is None:
            own = set(job.store.paths) & set(stores_of_run(job.run))
            which = "of the run" if own else "the newest complete store"
            yield Note(f"latents: {job.store.path} ({which})")
        if world.rank == 0 and job.start:
            yield from _told(job)
        if job.resume and job.resume.step >= job.settings.steps:
            yield Note(_done_already(job))
            return result_of(job, {}, {})
        if world.rank == 0 and (now := job.change_now):
            yield Note(f"from step {now.step} on: {now.words}")
        # Rank 0 locks the run directory for all.
        owned = contextlib.ExitStack()
        stack.enter_context(owned)
        on_rank_0(world, lambda: owned.enter_context(job.owned_run()))
        join_group(world, job.device)
        tune_cpu(job.device)
        stop = stack.enter_context(signals_noted())
        while True:
            trainer = Trainer(job, world)
            try:
                # Not before all that the run goes on from was read and found good.
                on_rank_0(world, job.write_config)
                for event in trainer.run(stop):
                    if world.rank == 0:
                        yield event
                return result_of(job, trainer.logbook.summary, trainer.logbook.data)
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


def _done_already(job: Job) -> str:
    """Why there is nothing to do."""
    done, asked, now = job.resume.step, job.settings.steps, job.change_now
    text = f"all {asked} steps of {job.run.path} are done already"
    if done > asked:
        text = f"{job.run.path} has {done} steps already, more than --steps {asked}"
    return f"{text}; with {now.words} it goes on for a higher --steps" if now else text


def _told(job: Job) -> Iterator[Event]:
    """What becomes of the weights that the run begins from."""
    yield from job.messages
    init = job.init
    yield Note(f"begun from {init['path']}, step {init['step']}, {init['weights']} weights:")
    for line in fates_lines(init["fates"]):
        yield Note(line)
    if untrained := sorted(job.untrained):
        yield Warn(
            f"{', '.join(untrained)}: new, and not trained; add --train-only '{untrained[0]}'"
        )


def _check_one_store(job: Job, world: World) -> None:
    """Raise SitError if a store was replaced while the ranks opened it, one after the other."""
    if len(set(gathered(world, (job.store.fingerprint, job.store.written_checksum)))) > 1:
        raise SitError(
            f"{job.store.path} was replaced by another file while the processes opened it",
            "type the same command again",
            shared=True,
        )


def plan(settings: TrainSettings, said: Said | None = None) -> Result:
    """What `train` would do, for --dry-run; touches nothing. said: as in `train`."""
    world = World(0, planned_size(gpus=settings.gpus, procs=settings.procs))
    job = prepare(settings, world, said)
    return plan_of(job, world)
