"""`sit train`: a latent store to a run directory."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sitcli.commands.newest import newest_run
from sitcli.commands.train.job import Job, beyond_the_papers, prepare
from sitcli.commands.train.meter import NotFinite
from sitcli.commands.train.trainer import Trainer
from sitcli.engine.engine import join_group
from sitcli.errors import SitError
from sitcli.events import Note, Result, Stage, Warn
from sitcli.machine.devices import precision_name, tune_cpu
from sitcli.machine.ranks import from_first, meeting, together
from sitcli.machine.signals import signals_noted
from sitcli.machine.world import World, planned_size, world_for
from sitcli.model.flops import total_cost
from sitcli.model.power_ema import TRACKED_STDS
from sitcli.settings.train import TrainSettings
from sitcli.text import count, format_bytes, format_shape


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
        stop = stack.enter_context(signals_noted())
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
        "objective": ", ".join([job.process.describe(), *beyond_the_papers(job)]),
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
        if newest_run().samefile(run):
            return "sit sample"
    return shlex.join(["sit", "sample", str(run)])
