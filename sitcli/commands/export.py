"""``sit export``: writes a checkpoint in a form that other implementations load."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sitcli.errors import SitError, UsageError
from sitcli.events import Result, Stage, Warn
from sitcli.machine.quiet import quiet_libraries
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.weights import ExportSettings
from sitcli.storage.files import make_folder, replacing, sync_folder
from sitcli.text import format_bytes
from sitcli.weights.diffusers_dit import EXTRAS
from sitcli.weights.formats import FORMATS, TRAINING_ONLY, Export
from sitcli.weights.sidecar import sidecar_of, write_sidecar


def export(settings: ExportSettings) -> Stage:
    """Write one checkpoint's weights to settings.out in another layout, whole or not at all.

    Raises UsageError for a checkpoint that the layout cannot hold, with the reason.
    """
    quiet_libraries()
    job = _prepare(settings)
    if job.export.checkpoint.weights_warning:
        yield Warn(job.export.checkpoint.weights_warning)
    for text in job.export.warnings:
        yield Warn(text)
    out = settings.out
    try:
        make_folder(out.parent)
        if FORMATS[settings.format].folder:
            _write_whole_folder(out, job)
        else:
            with replacing(out) as temporary:
                job.write(temporary)
                if job.export.beside is not None:
                    meta, tensors = job.export.meta, job.export.beside
                    write_sidecar(temporary, out, meta=meta, tensors=tensors)
    except OSError as error:
        raise SitError(f"cannot write {out}: {error.strerror or error}") from None
    return _result(job)


def plan(settings: ExportSettings) -> Result:
    """What `export` would do, for --dry-run; writes nothing."""
    quiet_libraries()
    job = _prepare(settings)
    result = _result(job)
    result.summary["would write"] = str(settings.out)
    result.data["dry_run"] = True
    result.path, result.next = None, "the same command without --dry-run"
    return result


def _write_whole_folder(out: Path, job: _Job) -> None:
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        job.write(temporary)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _prepare(settings: ExportSettings) -> _Job:
    checkpoint = open_checkpoint(settings.checkpoint)
    layout = FORMATS[settings.format]
    if settings.vae is not None and not layout.takes_vae:
        raise UsageError(f"--vae has no effect with --format {settings.format}", "remove --vae")
    _check_out(settings)
    state = checkpoint.weights(settings.weights)
    export = Export(checkpoint=checkpoint, which=settings.weights, state=state, vae=settings.vae)
    heads = [key for key in state if key.startswith(TRAINING_ONLY)]
    if heads and not layout.keeps_training_parts:
        # Official code refuses unknown keys, and the network is the same without these.
        export.state = {key: value for key, value in state.items() if key not in heads}
        export.warnings.append(
            f"not exported: {len(heads)} tensors of the second head or REPA's projector"
        )
    return _Job(settings, export, layout.prepare(export))


def _check_out(settings: ExportSettings) -> None:
    out, folder = settings.out, FORMATS[settings.format].folder
    if not out.exists():
        return
    if not folder and out.is_dir():
        raise UsageError(f"{out} is a folder", f"name a file, e.g. {out / 'weights.pt'}")
    # --overwrite only removes a folder that sit export wrote.
    if folder and not (out / EXTRAS).exists():
        raise UsageError(f"{out} exists, and sit export did not write it", "name another OUT")
    if not settings.overwrite:
        raise UsageError(f"{out} exists already", "name another OUT, or add --overwrite")


def _result(job: _Job) -> Result:
    settings, checkpoint = job.settings, job.export.checkpoint
    size = sum(value.numel() * value.element_size() for value in job.export.state.values())
    summary = {
        "checkpoint": f"{checkpoint.path}, {settings.weights} weights",
        "process": checkpoint.process.describe(),
        "format": f"{settings.format}, {format_bytes(size)} of tensors",
    }
    beside = None
    if job.export.beside is not None:
        beside = str(sidecar_of(settings.out))
        summary["beside it"] = f"{beside}, from which sit import restores the run"
    data = dict(
        checkpoint=str(checkpoint.path),
        sidecar=beside,
        step=checkpoint.step,
        weights=settings.weights,
        format=settings.format,
        warnings=job.export.warnings,
    )
    return Result(summary=summary, data=data, path=settings.out)


@dataclass(frozen=True)
class _Job:
    """An export, and the function that writes it to a path."""

    settings: ExportSettings
    export: Export
    write: Callable[[Path], None]
