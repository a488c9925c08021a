"""Finds the newest artefact below the current directory, for a stage whose input is not named."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sitcli.errors import SitError

MAX_DEPTH = 3
MANY_FOLDERS = 200  # more are a folder per class, with a million files to list and no store
RUNS, SAMPLES = Path("runs"), Path("samples")


def newest_store() -> Path:
    """The latent store that was completed last. Raises SitError if there is none."""
    from sitcli.latents.store import LatentStore

    unfinished = None
    for path in _by_age(_h5_files(Path("."), MAX_DEPTH)):
        try:
            if LatentStore.open(path, allow_incomplete=True).complete:
                return path
            unfinished = unfinished or path
        except SitError:
            continue  # somebody else's HDF5 file
    if unfinished is not None:
        LatentStore.open(unfinished)  # says how to complete it
    raise SitError(
        "there is no latent store (*.h5) below this folder",
        "make one: sit encode-latents FOLDER_OF_IMAGES out.h5",
    )


def newest_run() -> Path:
    """The run below runs/ with the newest checkpoint. Raises SitError if there is none."""
    metas = _by_age(RUNS.glob("*/step-*/meta.json"))
    if not metas:
        raise SitError("there is no checkpoint below runs/", "make one: sit train")
    return metas[0].parent.parent


def newest_written_run() -> Path:
    """The run below runs/ that wrote a file last, with or without a checkpoint.

    Raises SitError if there is none.
    """
    written: dict[Path, int] = {}
    for name in ("config.yaml", "metrics.jsonl"):
        for path in RUNS.glob(f"*/{name}"):
            with contextlib.suppress(OSError):  # removed since
                time = path.stat().st_mtime_ns
                written[path.parent] = max(time, written.get(path.parent, 0))
    if not written:
        raise SitError("there is no run below runs/", "start one: sit train")
    return max(written, key=written.__getitem__)


def newest_samples() -> Path:
    """The sample set below samples/ that was completed last.

    Inverted images do not count, as they are no samples of the model, and sets of latents only do
    not either. Raises SitError if there is none.
    """
    from sitcli.samples.sample_set import SampleSet

    unfinished = None
    for path in _by_age(SAMPLES.glob("**/*.h5")):
        try:
            samples = SampleSet.open(path)
            if "invert" in samples.meta or samples.images is None:
                continue
            if samples.complete:
                return path
            unfinished = unfinished or path
        except SitError:
            continue
    if unfinished is not None:
        raise SitError(f"{unfinished} is not complete", "type its `sit sample` command again")
    raise SitError("there is no sample set below samples/", "make one: sit sample")


def _by_age(paths: Iterator[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _h5_files(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    yield from (folder / e.name for e in entries if e.name.endswith(".h5") and e.is_file())
    if depth > 1:
        folders = [e.name for e in entries if e.is_dir() and e.name not in ("runs", "samples")]
        for name in folders if len(folders) <= MANY_FOLDERS else []:
            yield from _h5_files(folder / name, depth - 1)
