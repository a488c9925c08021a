"""`sit encode-latents`: images to a latent store."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Generator
from pathlib import Path

import numpy as np

from sitcli.commands.encode.fill import encode_missing
from sitcli.commands.encode.grow import drop_growing, take_place
from sitcli.commands.encode.job import (
    Looked,
    look_at_source,
    lost_labels,
    resolve,
    row_shape_ahead,
)
from sitcli.commands.encode.report import UNKNOWN, describe, faults, result_of
from sitcli.commands.encode.resume import unsaid_as_begun
from sitcli.errors import Interrupted, SitError
from sitcli.events import Event, Note, Progress, Result, Stage, Warn
from sitcli.images.decode import CROPS
from sitcli.images.source import COMPARED, Source
from sitcli.latents.readback import ReadBack, standardised
from sitcli.latents.store import LatentStore
from sitcli.machine.quiet import quiet_libraries
from sitcli.machine.ranks import all_agree, on_rank_0, process_group
from sitcli.machine.world import planned_size, world_for
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.option import Said
from sitcli.storage import locks
from sitcli.storage.rows import MISSING, Rows
from sitcli.text import count, format_bytes, format_shape

NORMALISED = {
    "autoencoder": "as the autoencoder says",
    "channels": "each channel to mean 0 and std 1",
}


def encode(settings: EncodeSettings, said: Said | None = None) -> Stage:
    """Encode every image of the source into a latent store, or go on where a run stopped.

    said: the options that were given, see `unsaid_as_begun`.
    A store whose source has more images now grows by them, see commands/encode/grow.py.
    Raises UsageError if OUT was made with other settings; SitError if the source cannot be used or
    has changed otherwise since OUT was begun, for a full disk, and under --strict for a broken
    image.
    """
    quiet_libraries()
    world = world_for(gpus=settings.gpus, procs=settings.procs)
    try:
        with contextlib.ExitStack() as held:
            with process_group(world):
                begun = on_rank_0(world, lambda: unsaid_as_begun(settings, said))
                settings = all_agree(world, lambda: resolve(begun))

                def look() -> Looked:
                    held.enter_context(locks.lock(settings.out))
                    return _settled(look_at_source(settings), settings.out)

                source, file, out, old, later = on_rank_0(world, look)
                complete = file is not None and file.attrs["complete"]
                if complete:
                    yield Note(f"{settings.out} is complete already{_same(settings, source)}")
                    if lost := lost_labels(settings, file):
                        yield Warn(lost)
                else:
                    yield Note(describe(source))
                    for fault in faults(source):
                        yield Warn(fault)
                    beside = dataclasses.replace(settings, out=out)
                    pace = yield from encode_missing(beside, source, file, world, old=old)
            if world.rank:
                return Result()
            if complete:
                return result_of(LatentStore(file), settings)
            yield from complete_store(out)
            if old is not None:
                take_place(out, settings.out)
            if later:
                yield Note(f"{count(later, 'image')} came meanwhile: the same command adds them")
            return result_of(LatentStore.open(settings.out), settings, pace=pace)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted", "the same command goes on where it was", signal_number=signal.SIGINT
        ) from None


def _settled(looked: Looked, out: Path) -> Looked:
    """A growth that was complete but for its last rename gets it; one that is of no use goes."""
    if looked.old is None:
        drop_growing(out)
    elif looked.file is not None and looked.file.attrs["complete"]:
        take_place(looked.out, out)
        return Looked(looked.source, Rows(out), out)
    return looked


def _same(settings: EncodeSettings, source: Source | None) -> str:
    """Why --overwrite leaves a complete store as it is, for people."""
    if not settings.overwrite or source is None:
        return ""
    looked = len(source) if source.members else min(COMPARED, len(source))
    how = f"all {looked}" if looked == len(source) else f"{looked} of {len(source)}"
    return f" and holds these images ({how} files compared): remove it to encode them again"


def plan(settings: EncodeSettings, said: Said | None = None) -> Result:
    """What `encode` would do, for --dry-run; reads the source and an existing OUT, writes nothing.

    Raises the errors that `encode` would raise before its first image.
    """
    settings = resolve(unsaid_as_begun(settings, said))
    locks.check_writable(settings.out)
    source, file, _, old, _ = look_at_source(settings)
    file = file or old
    shape = row_shape_ahead(settings, file)
    copies = 2 if settings.flip else 1
    num = file.num_rows if source is None else len(source)
    done = 0 if file is None else int(np.count_nonzero(file.written))
    size = None if shape is None else num * copies * 2 * int(np.prod(shape))
    processes = planned_size(gpus=settings.gpus, procs=settings.procs)
    summary = {
        "source": describe(source) if source else f"{settings.source} (gone)",
        "autoencoder": settings.vae,
        "images": f"{settings.image_size} x {settings.image_size}, crop {settings.crop}",
        "rows": f"{format_shape(shape)} float16" if shape else UNKNOWN,
        "normalised": NORMALISED[settings.normalize],
        "flips": "encoded too" if settings.flip else "no",
        "size": format_bytes(size) if size else UNKNOWN,
        "processes": str(processes),
        "state": f"{done} of {num} images encoded" if file else "new",
    }
    warnings = faults(source) if source else []
    summary |= {f"warning {number}": text for number, text in enumerate(warnings, 1)}
    data = dataclasses.asdict(settings) | {
        "processes": processes,
        "images": num,
        "done": done,
        "row_shape": shape,
        "bytes": size,
        "num_classes": None if source is None else len(source.class_names),
        "labels_from": None if source is None else source.labelled.origin,
        "warnings": warnings,
    }
    return Result(summary=summary, data=data, path=settings.out)


def complete_store(out: Path) -> Generator[Event, None, None]:
    """Read everything back from the disk and mark OUT complete; raises SitError for damage."""
    with Rows(out, writable=True) as file:
        store = LatentStore(file)
        if not store.num_items:
            name, problem = store.broken()[0]
            raise SitError(
                f"none of the {file.num_rows} images can be used; the first is {name}: {problem}",
                "--crop adm takes images of any size" if not CROPS[store.crop].any_size else "",
            )
        file.sync(forget=True)
        check = ReadBack(store)
        for done in check:
            text = f"read back {done}/{file.num_rows}"
            yield Progress(done=file.num_rows, total=file.num_rows, text=text)
        if check.damaged:
            file.write(sorted(check.damaged), status=MISSING)
            raise SitError(
                f"{len(check.damaged)} rows of {out} are not what was written; is the disk bad?",
                "the same command encodes them again",
            )
        statistics = dict(mean=check.mean, std=check.std)
        if "normalize" in file.attrs and "grown" not in file.attrs:
            statistics = standardised(check)
        file.set_attrs(**statistics, checksum=check.checksum)
        file.set_attrs(complete=True)
