"""`sit sample`: a checkpoint to a sample set."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np

from sitcli.commands.sample.draw import (
    as_begun,
    check_begun,
    fill,
    missing_batches,
    open_or_create,
)
from sitcli.commands.sample.job import chosen_checkpoint, planned_evaluations, prepare
from sitcli.commands.sample.pictures import save_pictures
from sitcli.commands.sample.report import describe, evaluations_text, labels_text, result_of
from sitcli.commands.sample.resume import unsaid_as_begun
from sitcli.commands.sample.sampler import shrinks
from sitcli.events import Note, Result, Stage, Warn
from sitcli.machine.devices import tune_cpu
from sitcli.machine.quiet import quiet_libraries
from sitcli.machine.ranks import all_agree, on_rank_0, process_group, watching_peers
from sitcli.machine.world import planned_size, world_for
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.option import Said
from sitcli.settings.sample import SampleSettings
from sitcli.storage import locks
from sitcli.storage.files import make_folder
from sitcli.text import format_bytes


def sample(settings: SampleSettings, said: Said | None = None) -> Stage:
    """Draw settings.num images, or those that an interrupted set lacks.

    Each of W processes draws every W-th of the missing batches; rank 0 creates and finishes the
    set. said: the options that were given, see `unsaid_as_begun`.

    Raises UsageError for options that do not fit the checkpoint or the set.
    """
    quiet_libraries()
    world = world_for(gpus=settings.gpus, procs=settings.procs)
    with contextlib.ExitStack() as held:
        with process_group(world):
            settings = on_rank_0(world, lambda: unsaid_as_begun(settings, said))
            # A training run may save its next step while we look: one rank decides for all.
            newest = on_rank_0(world, lambda: chosen_checkpoint(settings).path)
            job = all_agree(
                world, lambda: prepare(dataclasses.replace(settings, checkpoint=newest))
            )
            if settings.checkpoint is None:
                yield Note(f"checkpoint: {newest} (the newest)")
            if job.earlier_preset:
                yield Warn(
                    f"{job.file} was begun under --preset {settings.preset} of sit 0.7 or earlier, "
                    "and goes on with what that set: for the corrected preset name another --out"
                )
            for used in filter(None, (job.checkpoint, job.guide)):
                if used.weights_warning:
                    yield Warn(used.weights_warning)

            def begin() -> list[np.ndarray]:
                make_folder(job.file.parent)
                held.enter_context(locks.lock(job.file))
                samples = held.enter_context(open_or_create(job).rows)
                return missing_batches(SampleSet(samples), job)

            missing = on_rank_0(world, begin)
            samples = all_agree(world, lambda: SampleSet.open(job.file, writable=True))
            held.enter_context(samples.rows)
            job = all_agree(world, lambda: as_begun(job, samples))
            if shrinks(job.sampler):
                yield Warn(
                    f"--last-step mean makes images of less contrast under --wt {job.settings.wt}, "
                    "whose w_t is not 0 at the data: tweedie and euler do not"
                )
            if samples.complete and not missing:
                yield Note(f"all {samples.num} images are there already")
            else:
                before = int(samples.done.sum())
                if 0 < before < samples.num:
                    yield Note(f"going on: {before} of {samples.num} images are there")
                tune_cpu(job.device)
                with watching_peers(world) as check_peers:
                    yield from fill(samples, job, missing, world, check_peers)
        if world.rank:
            return Result()
        if not samples.complete or missing:
            samples.finish()
        save_pictures(samples, job)
        return result_of(samples, job)


def plan(settings: SampleSettings, said: Said | None = None) -> Result:
    """What `sample` would do, for --dry-run; touches nothing. said: as in `sample`."""
    from sitcli.model.flops import total_cost

    job = prepare(unsaid_as_begun(settings, said))
    if job.file.exists():
        with SampleSet.open(job.file).rows as rows:
            check_begun(SampleSet(rows), job.facts(), how="drawn")
            job = as_begun(job, SampleSet(rows))
    cost, s = total_cost(job.checkpoint.config), job.settings
    planned = planned_evaluations(job)
    evaluations = planned and planned[0]
    height, width = job.checkpoint.image_size
    facts = job.facts()
    processes = planned_size(gpus=s.gpus, procs=s.procs)
    summary = {
        "checkpoint": str(job.checkpoint.path),
        "model": f"{job.checkpoint.meta['model']}, {cost.params / 1e6:.1f} M parameters",
        "sampler": describe(facts | {"interval": job.sampler.interval}),
        "evaluations": evaluations_text(planned),
        "cost": f"{cost.macs * evaluations * s.num / 1e12:.3g} TMACs"
        if evaluations
        else f"{cost.macs / 1e9:.3g} GMACs an evaluation",
        "labels": labels_text(facts),
        "images": f"{s.num}, latents only"
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
