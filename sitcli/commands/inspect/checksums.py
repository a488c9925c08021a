"""The checksums of all files of a run or a checkpoint, compared with what the files hold."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sitcli.commands.inspect.checks import Problems
from sitcli.commands.train.resume import config_as_written, contradictions, read_config
from sitcli.errors import SitError
from sitcli.events import Progress
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.storage.files import has_checksum
from sitcli.storage.locks import lock_path
from sitcli.storage.tensors import has_checksums, verify_tensors
from sitcli.text import first_line

TENSORS = ".safetensors"


def verify_step(checkpoint: Checkpoint) -> Problems:
    """Problems with the bytes of the files of one checkpoint, each named with its tensor."""
    files = _tensor_files(checkpoint.path)
    sealed, problems = has_checksum(checkpoint.meta), []
    for done, path in enumerate(files, start=1):
        recorded, wrong = verify_tensors(path)
        name = path.relative_to(checkpoint.path)
        problems += [f"{name}: {problem}" for problem in wrong]
        if recorded != sealed:
            lacking, other = (name, "meta.json") if sealed else ("meta.json", name)
            problems.append(f"{lacking} has no checksum, and {other} has: it was changed")
        yield Progress(done=done, total=len(files), unit="files")
    return problems


def verify_beside_steps(run: RunDir) -> Problems:
    """Problems with the bytes of a run's settings, log, pictures and kept averages."""
    problems = []
    files = _tensor_files(run.averages) + ([run.base] if run.base.exists() else [])
    for done, path in enumerate(files, start=1):
        problems += [
            f"{path.relative_to(run.path)}: {problem}" for problem in verify_tensors(path).problems
        ]
        yield Progress(done=done, total=len(files), unit="averages")
    newest = open_checkpoint(run.path) if run.steps() else None
    if run.config.exists():
        written = config_as_written(run.config)
        if written is False or (written is None and newest and "settings" in newest.meta):
            problems.append("config.yaml is not what sit wrote: it was edited or damaged")
        known = newest and (newest, read_config(run.config))
        for name, ours, theirs in contradictions(*known, changed=bool(written)) if known else ():
            problems.append(
                f"config.yaml says {name} {theirs}, but {newest.path.name} was trained with {ours}"
            )
    mark = newest.meta.get("metrics") if newest and newest.trainable else None
    if mark is not None and (
        run.metrics_bytes() < mark["bytes"] or run.metrics_checksum(mark["bytes"]) != mark["crc32"]
    ):
        problems.append(
            f"metrics.jsonl is not what was logged up to {newest.path.name}: it was edited or "
            "damaged"
        )
    for path in _pictures(run.path):
        try:
            with Image.open(path) as picture:
                picture.verify()  # every chunk of a PNG has a CRC-32
        except Exception as error:  # Pillow raises SyntaxError, OSError and others
            problems.append(f"{path.relative_to(run.path)} is damaged: {first_line(error)}")
    return problems


def without_checksums(artefact: RunDir | Checkpoint) -> list[str]:
    """The files for which no checksum was recorded, which 0.7 and older versions did not do.

    Of a checkpoint without any only the folder's name is listed.
    """
    if isinstance(artefact, Checkpoint):
        lacking = [path for path in _tensor_files(artefact.path) if not _has_checksums(path)]
        return [artefact.path.name] if lacking or not has_checksum(artefact.meta) else []
    run, names = artefact, []
    for step in run.steps():
        names += without_checksums(open_checkpoint(run.step_path(step)))
    if run.config.exists() and config_as_written(run.config) is None:
        names.append(run.config.name)
    if run.metrics.exists() and (
        not run.steps() or "metrics" not in open_checkpoint(run.path).meta
    ):
        names.append(run.metrics.name)
    averages = [path for path in _tensor_files(run.averages) if not _has_checksums(path)]
    return names + [str(path.relative_to(run.path)) for path in averages]


def uncovered(run: RunDir) -> list[str]:
    """Files and folders in a run directory that `sit inspect --verify` does not look at."""
    known = {run.config, run.metrics, run.averages, run.base, lock_path(run.config)}
    known |= {run.step_path(step) for step in run.steps()} | set(run.partial())
    pictures = _pictures(run.path)
    return sorted(
        path.name
        for path in run.path.iterdir()
        if path not in known
        and path not in pictures
        and not (path.is_dir() and all(p in pictures for p in path.rglob("*") if p.is_file()))
    )


def _tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{TENSORS}"))


def _pictures(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.png"), *(folder / "samples").glob("*.png")])


def _has_checksums(path: Path) -> bool:
    try:
        return has_checksums(path)
    except SitError:  # unreadable: that is another problem
        return True
