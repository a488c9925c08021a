"""``sit ema``: combines a run's power-function averages into one of any length."""

from __future__ import annotations

import contextlib
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sitcli.commands.newest import newest_run
from sitcli.errors import SitError, UsageError
from sitcli.events import Note, Progress, Result, Stage, Warn
from sitcli.model.power_ema import Snapshot, posthoc_coefficients, posthoc_error
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.settings.weights import EmaSettings
from sitcli.storage import locks
from sitcli.storage.files import make_folder
from sitcli.storage.tensors import verified_tensors, write_tensors
from sitcli.text import count

# Relative error above which the result is not the average that was asked for (Karras et al. show
# smaller errors).
LARGEST_ERROR = 0.05


def average(settings: EmaSettings) -> Stage:
    """Write the average of length settings.std as a run of its own, whole or not at all.

    Raises UsageError for a run without snapshots or without those of settings.step.
    """
    job = _prepare(settings)
    if settings.run is None:
        yield Note(f"run: {job.run.path} (the newest)")
    if job.error > LARGEST_ERROR:
        yield Warn(
            f"the average has a relative error of {job.error:.0%}: there are too few snapshots "
            f"near step {job.target.step}"
        )
    state: dict[str, Tensor] = {}
    for done, (snapshot, factor) in enumerate(job.used.items()):
        yield Progress(done=done, total=len(job.used), unit="snapshots")
        _add(state, job.files[snapshot], factor)
    yield Progress(done=len(job.used), total=len(job.used), unit="snapshots")
    _write(job, state)
    return _result(job, written=True)


def plan(settings: EmaSettings) -> Result:
    """What `average` would do, for --dry-run; writes nothing."""
    return _result(_prepare(settings), written=False)


@dataclass(frozen=True)
class _Job:
    run: RunDir
    files: dict[Snapshot, Path]
    used: dict[Snapshot, float]  # the snapshots and their factors
    target: Snapshot
    error: float  # of the average's weights over time, relative
    out: RunDir


def _prepare(settings: EmaSettings) -> _Job:
    run = _run_of(settings.run or newest_run())
    if not run.path.is_dir():
        raise SitError(f"there is no run {run.path}", "name a folder below runs/")
    files = run.snapshots()
    if not files:
        raise UsageError(f"{run.path} keeps no averages to combine", "train with --power-ema")
    last = max(snapshot.step for snapshot in files)
    step = settings.step or last
    if step not in {snapshot.step for snapshot in files}:
        steps = ", ".join(str(s) for s in sorted({snapshot.step for snapshot in files})[-8:])
        raise UsageError(f"--step {step}: no averages of that step are kept", f"use one of {steps}")
    target = Snapshot(step, settings.std)
    factors = dict(zip(files, posthoc_coefficients(list(files), target), strict=True))
    used = {snapshot: factor for snapshot, factor in factors.items() if factor}
    error = posthoc_error(list(used), list(used.values()), target)
    out = RunDir(settings.out or run.path.with_name(f"{run.path.name}-ema{settings.std:.3f}"))
    if out.path.exists() and any(out.path.iterdir()) and not _is_ours(out):
        raise UsageError(f"{out.path} exists, and sit ema did not write it", "name another --out")
    return _Job(run, files, used, target, error, out)


def _run_of(path: Path) -> RunDir:
    """The run at `path`, or the run of the step at `path`."""
    return RunDir(path.parent if (path / "meta.json").exists() else path)


def _is_ours(run: RunDir) -> bool:
    """Whether every step there was written by sit ema."""
    with contextlib.suppress(SitError):
        steps = [open_checkpoint(run.step_path(step)) for step in run.steps()]
        return bool(steps) and all("power_ema" in step.meta for step in steps)
    return False


def _add(state: dict[str, Tensor], path: Path, factor: float) -> None:
    """state += factor * the tensors of the file, in float64; `pos_embed` is copied."""
    # What is made of it gets checksums of its own: damage would not show any more.
    for name, tensor in verified_tensors(path, hint=f"remove {path} to do without it"):
        if name == "pos_embed":  # fixed: no average
            state[name] = tensor
            continue
        term = factor * tensor.double()
        state[name] = state[name] + term if name in state else term


def _write(job: _Job, state: dict[str, Tensor]) -> None:
    source = _source(job)
    meta: dict[str, Any] = {k: v for k, v in source.meta.items() if k not in ("sit_version",)}
    step = job.target.step
    # Nothing trains on from an average, so it names no random streams.
    for key in ("format", "format_version", "step", "streams", "metrics", "checksum"):
        meta.pop(key, None)
    meta |= dict(
        ema=f"power function, std {job.target.std:g}",
        power_ema=dict(
            std=job.target.std,
            run=str(job.run.path.resolve()),
            error=job.error,
            sum=math.fsum(job.used.values()),
            snapshots=[[s.step, s.std, factor] for s, factor in job.used.items()],
        ),
        # The curve of the losses and so on are the source's newest.
        facts_of_step=source.step,
    )
    tensors = {name: tensor.to(torch.float32) for name, tensor in state.items()}
    try:
        make_folder(job.out.path)
        with locks.lock(job.out.config, what=job.out.path):
            job.out.clean()
            folder = job.out.begin_save(step)
            write_tensors(folder / "ema.safetensors", tensors)
            arrays = source.autoencoder_arrays()
            if arrays:
                named = {name: torch.from_numpy(array) for name, array in arrays.items()}
                write_tensors(folder / "autoencoder.safetensors", named)
            existing = job.out.step_path(step) / "meta.json"
            existing.unlink(missing_ok=True)
            job.out.commit_save(step, meta)
    except OSError as error:
        job.out.clean()
        raise SitError(f"cannot write {job.out.path}: {error.strerror or error}") from None


def _source(job: _Job) -> Any:
    """The checkpoint whose facts the average takes over: that of its step, else the newest."""
    own = job.run.step_path(job.target.step)
    return open_checkpoint(own if (own / "meta.json").exists() else job.run.path)


def _result(job: _Job, *, written: bool) -> Result:
    step = job.out.step_path(job.target.step)
    steps = sorted({snapshot.step for snapshot in job.used})
    stds = " and ".join(f"{std:g}" for std in sorted({snapshot.std for snapshot in job.used}))
    summary = {
        "average": f"std {job.target.std:g} at step {job.target.step}",
        "made of": f"{count(len(job.used), 'snapshot')}, std {stds}, steps {steps[0]} to "
        f"{steps[-1]}",
        "error": f"{job.error:.2%} of the average's weights over time",
    }
    data = dict(
        std=job.target.std,
        step=job.target.step,
        error=job.error,
        sum=math.fsum(job.used.values()),
        snapshots=[dict(step=s.step, std=s.std, factor=f) for s, f in job.used.items()],
        run=str(job.out.path),
    )
    if not written:
        summary["would write"] = str(step)
        return Result(
            summary=summary,
            data=data | {"dry_run": True},
            next="the same command without --dry-run",
        )
    command = shlex.join(["sit", "sample", str(job.out.path)])
    return Result(summary=summary, data=data | {"checkpoint": str(step)}, path=step, next=command)
