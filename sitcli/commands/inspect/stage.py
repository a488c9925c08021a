"""``sit inspect``: describes an artefact, verifies it, and draws what it holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from sitcli.commands.inspect.checks import Artefact, listed
from sitcli.commands.inspect.checksums import uncovered, without_checksums
from sitcli.commands.inspect.plot import checkpoint_to_plot, plot_curves
from sitcli.commands.inspect.run import (
    describe_checkpoint,
    describe_run,
    verify_checkpoint,
    verify_run,
)
from sitcli.commands.inspect.samples import describe_samples, draw_samples, verify_samples
from sitcli.commands.inspect.store import describe_store, draw_store, verify_store
from sitcli.errors import SitError, UsageError
from sitcli.events import Result, Stage, Table, Warn
from sitcli.images.grid import save_grid
from sitcli.latents.layout import FORMAT as STORE_FORMAT
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.run_dir import FORMAT as CHECKPOINT_FORMAT
from sitcli.runs.run_dir import RunDir
from sitcli.samples.sample_set import FILE as SAMPLES_FILE
from sitcli.samples.sample_set import FORMAT as SAMPLES_FORMAT
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.tools import InspectSettings
from sitcli.storage import rows
from sitcli.storage.hub import local_path

EXPECTED = (
    "sit inspect reads a latent store (*.h5), a run (runs/NAME), one of its steps (step-0010000) "
    "or a sample set (samples/NAME)"
)


def inspect(settings: InspectSettings) -> Stage:
    """Describe the artefact at `settings.path`; verify it, draw a preview or a plot if asked to.

    Raises SitError if it is no artefact of ours, cannot be read, or fails --verify; UsageError for
    options that do not fit it.
    """
    if settings.preview is None and settings.vae is not None:
        raise UsageError("--vae is for --preview", "remove --vae, or add --preview grid.png")
    artefact = _open(settings.path)
    describe, verify, draw = FUNCTIONS[type(artefact)]
    if settings.preview is not None and draw is None:
        raise UsageError(
            f"{settings.path} holds weights, no pictures to preview",
            f"draw some: sit sample {settings.path}",
        )
    try:
        plotted = checkpoint_to_plot(settings, artefact)
        result = describe(artefact)
        problems = (yield from verify(artefact)) if settings.verify else []
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(settings.path, error) from error
    if problems:
        raise SitError(f"{settings.path} is damaged: {'; '.join(problems)}")
    # The facts that other commands print on stderr are this command's result: they go to stdout.
    facts = [[name, value] for name, value in result.summary.items()]
    result.tables.insert(0, Table(title=str(settings.path), header=["", ""], rows=facts))
    result.summary = {}
    result.data["verified"] = settings.verify
    if settings.verify:
        _say_verified(artefact, result)
    if settings.preview is not None:
        _preview(settings, *draw(artefact, settings))
        result.path = settings.preview
        result.data["preview"] = str(settings.preview)
    if plotted is not None:
        if plotted.loss_curve is None:
            yield Warn(f"{plotted.path} has no measured loss: the plot lacks L_t and kl-eta")
        plot_curves(settings, plotted, result)
    return result


def _say_verified(artefact: Artefact, result: Result) -> None:
    """Add what --verify found, none of it a problem, to the summary."""
    lacking = without_checksums(artefact) if isinstance(artefact, (RunDir, Checkpoint)) else []
    result.summary["verified"] = "everything was read back and is sound"
    if lacking:
        result.summary["verified"] = (
            "everything can be read; no checksums recorded (written by 0.7 or older) in "
            f"{listed(lacking)}"
        )
    result.data["without_checksums"] = lacking
    if isinstance(artefact, SampleSet):
        result.summary["verified"] = "everything can be read; a sample set has no checksums"
        result.summary["not verified"] = "that images, labels and pictures are what was written"
    if isinstance(artefact, RunDir) and (names := uncovered(artefact)):
        result.summary["not verified"] = listed(names)


def _open(path: Path) -> Artefact:
    path = local_path(path)
    if not path.exists():
        raise SitError(f"there is no {path}", EXPECTED)
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error


def _open_file(path: Path) -> Artefact:
    if not h5py.is_hdf5(path):
        raise SitError(f"{path} is not a file of sit's", EXPECTED)
    kind = rows.Rows(path).attrs.get("format")
    if kind == STORE_FORMAT:
        return LatentStore.open(path, allow_incomplete=True)
    if kind == SAMPLES_FORMAT:
        return SampleSet.open(path)
    raise SitError(f"{path} is an HDF5 file, but not one that sit wrote", EXPECTED)


def _open_folder(path: Path) -> Artefact:
    if (path / SAMPLES_FILE).exists():
        return SampleSet.open(path)
    if (path / "model.safetensors").exists() or (path / "ema.safetensors").exists():
        if not (path / "meta.json").exists():
            raise SitError(f"{path} is a checkpoint whose saving was interrupted: no meta.json")
        return open_checkpoint(path)
    run = RunDir(path)
    if run.config.exists() or run.steps():
        return run
    meta = path / "meta.json"
    if meta.exists() and json.loads(meta.read_text()).get("format") == CHECKPOINT_FORMAT:
        return open_checkpoint(path)
    raise SitError(f"{path} is not a folder of sit's", EXPECTED)


def _damaged(path: Path, error: Exception) -> SitError:
    what = f"no '{error.args[0]}'" if isinstance(error, KeyError) else str(error).split("\n")[0]
    return SitError(f"{path} is damaged: {what}")


FUNCTIONS: dict[type, tuple[Callable, Callable, Callable | None]] = {
    LatentStore: (describe_store, verify_store, draw_store),
    SampleSet: (describe_samples, verify_samples, draw_samples),
    RunDir: (describe_run, verify_run, None),
    Checkpoint: (describe_checkpoint, verify_checkpoint, None),
}


def _preview(
    settings: InspectSettings, images: np.ndarray, columns: int, labels: list[str]
) -> None:
    try:
        save_grid(settings.preview, images, columns=columns, row_labels=labels)
    except OSError as error:
        raise SitError(f"cannot write {settings.preview}: {error.strerror or error}") from None
