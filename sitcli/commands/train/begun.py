"""Which run the settings mean: a new one, one from other weights, or one that goes on."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import torch

from sitcli.commands.train.init import Source, open_source, unsaid_as_source
from sitcli.commands.train.resume import (
    check_latents,
    check_same,
    history_of,
    settings_of_run,
    unsaid_as_begun,
)
from sitcli.commands.train.run_settings import KEPT_ON_RESUME, as_plain, resolve, run_name
from sitcli.errors import UsageError
from sitcli.latents.joined import JoinedStores
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.history import History
from sitcli.runs.run_dir import STEP_NAME, RunDir
from sitcli.samples.sample_set import FILE as SAMPLES_FILE
from sitcli.settings.option import Said
from sitcli.settings.train import TrainSettings


def from_source(settings: TrainSettings, said: Said) -> tuple[TrainSettings, Source | None]:
    """The settings of a run that begins from other weights: what was not said is as these have it.

    A run that goes on does not need them any more.
    """
    if settings.init is None:
        return settings, None
    if settings.out is not None and RunDir(settings.out).newest() is not None:
        return settings, None
    source = open_source(settings)
    return unsaid_as_source(settings, said, source), source


def begun(
    settings: TrainSettings,
    said: Said,
    store: LatentStore | JoinedStores,
    device: torch.device,
) -> tuple[TrainSettings, RunDir, Checkpoint | None, History]:
    """The resolved settings, their run, the checkpoint to go on from, None for a new run, and what
    the run changed and changes now.

    Raises UsageError for a change of what must not change.
    """
    resolved = resolve(settings, store, device) if settings.out is None else None
    run = RunDir(settings.out or _default_run(resolved, store))
    if (run.path / SAMPLES_FILE).exists():
        raise UsageError(f"{run.path} is a sample set", "name another --out for the run")
    for folder in (run.path, *run.path.parents):
        if STEP_NAME.fullmatch(folder.name) and (folder / "meta.json").exists():
            raise UsageError(f"{folder} is a checkpoint", "name another --out for the run")
    resume = _checkpoint_of(run)
    if resume:
        check_latents(run, resume, store, said="latents" in said)
    if resume is None and not run.config.exists():
        return resolved or resolve(settings, store, device), run, None, History()
    base = settings_of_run(run, resume)
    if resolved is not None:  # the run's name is that of the settings: all of them are compared
        compared = as_plain(settings).keys() - {"steps"} - KEPT_ON_RESUME
        said = dict.fromkeys(compared, "") | said
    filled = unsaid_as_begun(base, settings, said)
    try:
        resolved = resolve(filled, store, device)
    except UsageError:
        check_same(run, base, filled, said)  # a contradiction with the run explains more
        raise
    check_same(run, base, resolved, said)
    if resolved.precision == "auto":  # which may resolve differently another day
        kept = resume.meta.get("precision", base["precision"]) if resume else base["precision"]
        resolved = replace(resolved, precision=kept)
    return resolved, run, resume, history_of(resume, base, resolved, store)


def _checkpoint_of(run: RunDir) -> Checkpoint | None:
    """The checkpoint to go on from, None for a new run.

    Raises UsageError if it has no optimizer state.
    """
    newest = run.newest()
    if newest is None:
        return None
    resume = open_checkpoint(newest)
    if not resume.trainable:
        kind = "imported weights" if "lineage" in resume.meta else "an average of another run"
        raise UsageError(
            f"{run.path} holds {kind}, without an optimizer's state to go on from",
            f"begin a run from them, with another --out: sit train --init "
            f"{shlex.quote(str(run.path))} ...",
        )
    return resume


def _default_run(settings: TrainSettings, store: LatentStore | JoinedStores) -> Path:
    """The run's folder where --out names none."""
    marks = (store.fingerprint, store.first_fingerprint)
    now, first = (Path("runs") / run_name(settings, mark) for mark in marks)
    # A run of a version up to 0.7, whose store was encoded again since, has its name from then.
    return first if first.exists() and not now.exists() else now
