"""`sit import-latents`: latents of other projects to a latent store."""

from __future__ import annotations

import signal

import numpy as np

from sitcli.commands.encode.stage import complete_store
from sitcli.commands.import_latents.fill import begin, fill
from sitcli.commands.import_latents.job import existing, prepare
from sitcli.commands.import_latents.report import describe, result_of, summary_of
from sitcli.errors import Interrupted
from sitcli.events import Note, Result, Stage, Warn
from sitcli.machine.quiet import quiet_libraries
from sitcli.settings.latents import ImportLatentsSettings
from sitcli.storage import locks
from sitcli.text import format_bytes


def import_latents(settings: ImportLatentsSettings) -> Stage:
    """Copy the source's latents into a latent store, or go on where a run stopped.

    Raises UsageError if OUT is something else or the scaling is in doubt, SitError for a source
    that is damaged. OUT is not created then; if a bad value is found later, OUT is not complete.
    """
    quiet_libraries()
    try:
        with locks.lock(settings.out):
            job = prepare(settings)
            file = existing(job)
            if file is not None and file.attrs["complete"]:
                yield Note(f"{settings.out} is complete already")
                return result_of(job)
            yield Note(describe(job))
            for text in job.notes:
                yield Note(text)
            for text in job.warnings:
                yield Warn(text)
            if file is None:
                begin(job)
            else:
                done = int(np.count_nonzero(file.written))
                yield Note(f"going on with {settings.out}: {done} of {file.num_rows} images")
            pace = yield from fill(job)
            yield from complete_store(settings.out)
            return result_of(job, pace=pace)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted", "the same command goes on where it was", signal_number=signal.SIGINT
        ) from None


def plan(settings: ImportLatentsSettings) -> Result:
    """What `import_latents` would do, for --dry-run; reads the source, writes nothing."""
    quiet_libraries()
    locks.check_writable(settings.out)
    job = prepare(settings)
    file = existing(job)
    summary, data = summary_of(job)
    size = len(job.source) * len(job.source.reads) * 2 * int(np.prod(job.source.row_shape))
    done = 0 if file is None else int(np.count_nonzero(file.written))
    summary["size"] = format_bytes(size)
    summary["state"] = "new" if file is None else f"{done} of {file.num_rows} images are there"
    summary |= {f"note {number}": text for number, text in enumerate(job.notes, 1)}
    summary |= {f"warning {number}": text for number, text in enumerate(job.warnings, 1)}
    return Result(summary=summary, data=data | {"bytes": size, "done": done}, path=settings.out)
