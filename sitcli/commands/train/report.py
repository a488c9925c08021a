"""The reports of `sit train`: the plan of --dry-run, and the result at the end."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

from sitcli.commands.newest import newest_run
from sitcli.commands.train.init import fates_table
from sitcli.commands.train.job import Job
from sitcli.core.times import PLAIN
from sitcli.errors import SitError
from sitcli.events import Result
from sitcli.machine.devices import precision_name
from sitcli.machine.world import World
from sitcli.model.flops import total_cost
from sitcli.model.power_ema import TRACKED_STDS
from sitcli.text import count, format_bytes, format_shape


def plan_of(job: Job, world: World) -> Result:
    """What the job would do, for --dry-run."""
    s, cost = job.settings, total_cost(job.config)
    done = job.resume.step if job.resume else 0
    to_go = job.step_flops * (s.steps - done)
    # In fp32: the weights, their average, and Adam's two moments.
    kept, trained = job.kept_elements
    checkpoint_bytes = 4 * (2 * kept + 2 * trained + len(TRACKED_STDS) * s.power_ema * kept)
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
        "objective": ", ".join([job.process.describe(), *_beyond_the_papers(job)]),
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
    if job.trained is not None:
        adapters = f"adapters of rank {s.lora} and " if s.lora else ""
        summary["trained"] = f"{adapters}{job.trained_share:.2%} of the network's parameters"
    result = Result(summary=summary, data=data, next="the same command without --dry-run")
    if job.start:
        result.tables.append(fates_table(job.init["path"], job.init["fates"]))
        data["init"] = job.init
    return result


def _beyond_the_papers(job: Job) -> list[str]:
    """The parts of the objective that the papers' have not, for people."""
    s, parts = job.settings, []
    if s.t_dist != PLAIN.distribution:
        until = f" until step {s.t_dist_until}" if s.t_dist_until else ""
        moments = f" ({s.t_mean:g}, {s.t_std:g})" if s.t_mean is not None else ""
        parts.append(f"{s.t_dist} times{moments}{until}")
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


def result_of(job: Job, measured: dict[str, str], more: dict[str, Any]) -> Result:
    """The result of a complete run; measured, more: the logbook's summary and its data."""
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
