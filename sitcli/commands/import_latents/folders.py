"""Folders with an .npy file for each image: REPA's vae-sd and fast-DiT's features."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sitcli.commands.import_latents.source import Source, checked_labels
from sitcli.errors import SitError, UsageError
from sitcli.images.labels import FILE, read_labels
from sitcli.latents.scaling import Scaling
from sitcli.settings.latents import ImportLatentsSettings
from sitcli.storage.npy_files import NpyFiles

NO_LABELS = "none"
REPA_FOLDER, FEATURES, LABELS = "vae-sd", "_features", "_labels"
# What REPA's and fast-DiT's programs encode with and multiply by; the two VAEs share their encoder.
REPA_VAE, FAST_DIT_VAE = "stabilityai/sd-vae-ft-mse", "stabilityai/sd-vae-ft-ema"
SD_SCALING, SD_CHANNELS = Scaling(0.18215), 4


def find_repa(path: Path) -> Path | None:
    """The folder of REPA's latents: `path`, or its vae-sd; None if there is none."""
    for folder in (path / REPA_FOLDER, path):
        if (folder / FILE).is_file() and _has_npy(folder):
            return folder
    # Without its dataset.json only the name of the folder says so.
    named = [f for f in (path / REPA_FOLDER, path) if f.name == REPA_FOLDER and f.is_dir()]
    return named[0] if named else None


def open_repa(folder: Path, settings: ImportLatentsSettings) -> Source:
    """REPA's latents: unscaled mean and standard deviation, (2C, h, w) a file; not mirrored.

    Its train.py draws from the posterior and multiplies by 0.18215.
    (github.com/sihyun-yu/REPA, preprocessing/dataset_tools.py and train.py)
    """
    found = sorted(_npy_files(folder, ""))
    if not found:
        raise SitError(f"{folder} holds no .npy files", "name the folder that holds vae-sd/")
    names, sizes = [name for name, _ in found], [size for _, size in found]
    files = NpyFiles(folder, names)
    _needs_float(files, folder / names[0])
    files.check_sizes(sizes)
    labels, num_classes = None, 0
    if settings.labels != NO_LABELS:
        labels, num_classes = _repa_labels(folder, names, settings)
    sd = files.row_shape[0] == 2 * SD_CHANNELS
    return Source(
        path=folder, layout="REPA's latents", names=names, labels=labels,
        labels_from=NO_LABELS if labels is None else FILE, row_shape=files.row_shape, moments=True,
        reads=[files.read], identity=found, num_classes=num_classes,
        scaling=SD_SCALING if sd else None, vae=REPA_VAE if sd else None,
    )  # fmt: skip


def _repa_labels(
    folder: Path, names: list[str], settings: ImportLatentsSettings
) -> tuple[np.ndarray | None, int]:
    _no_option(settings.labels, folder)
    file = folder / FILE
    if not file.is_file():
        raise UsageError(f"{folder} has no {FILE}, which gives the labels", "add --labels none")
    known = read_labels(file.read_bytes(), str(file))
    if known is None:
        return None, 0
    if lacking := next((name for name in names if name not in known), None):
        raise UsageError(f"{file} has no label for {lacking}", "repair it, or add --labels none")
    labels = np.array([known[name] for name in names])
    # A part of the images keeps the classes of all.
    most = settings.num_classes or max(known.values()) + 1
    return checked_labels(labels, names, str(file), most)


def find_fast_dit(path: Path) -> Path | None:
    """The folder NAME_features of fast-DiT: `path` or one in it, beside NAME_labels."""
    inside = sorted(path.glob(f"*{FEATURES}"))
    for folder in [path, *inside] if path.name.endswith(FEATURES) else inside:
        if folder.is_dir() and _has_npy(folder):
            return folder
    return None


def open_fast_dit(folder: Path, settings: ImportLatentsSettings) -> Source:
    """fast-DiT's features: samples (1, C, h, w) a file, multiplied by 0.18215 already.

    Half of the images were mirrored before they were encoded, so that there is one copy of each.
    (github.com/chuanyangjin/fast-DiT, extract_features.py)
    """
    found = sorted(_npy_files(folder, ""), key=lambda entry: (len(entry[0]), entry[0]))
    names, sizes = [name for name, _ in found], [size for _, size in found]
    files = NpyFiles(folder, names)
    _needs_float(files, folder / names[0])
    files.check_sizes(sizes)
    labels, num_classes = None, 0
    labels_folder = folder.with_name(folder.name.removesuffix(FEATURES) + LABELS)
    if settings.labels != NO_LABELS:
        _no_option(settings.labels, folder)
        labels, num_classes = _fast_dit_labels(labels_folder, names, settings)
    shape = files.row_shape[1:] if files.row_shape[:1] == (1,) else files.row_shape
    sd = shape[:1] == (SD_CHANNELS,)
    return Source(
        path=folder, layout="fast-DiT's features", names=names, labels=labels,
        labels_from=NO_LABELS if labels is None else labels_folder.name, row_shape=shape,
        moments=False, scaled=True, num_classes=num_classes, identity=found,
        reads=[lambda start, stop: files.read(start, stop).reshape(stop - start, *shape)],
        scaling=SD_SCALING if sd else None, vae=FAST_DIT_VAE if sd else None,
    )  # fmt: skip


def _fast_dit_labels(
    folder: Path, names: list[str], settings: ImportLatentsSettings
) -> tuple[np.ndarray, int]:
    hint = "restore it, or add --labels none"
    if not folder.is_dir():
        raise UsageError(f"there are no labels: {folder} does not exist", hint)
    known = {name for name, _ in _npy_files(folder, "")}
    if lacking := next((name for name in names if name not in known), None):
        raise UsageError(f"{folder} has no {lacking}", hint)
    labels = NpyFiles(folder, names).read(0, len(names)).numpy()
    return checked_labels(labels.reshape(len(names), -1), names, str(folder), settings.num_classes)


def _no_option(labels: str | None, folder: Path) -> None:
    if labels is not None:
        raise UsageError(
            f"--labels {labels} has no effect: {folder} has labels of its own",
            "remove --labels, or add --labels none",
        )


def _needs_float(files: NpyFiles, path: Path) -> None:
    if not files.dtype.is_floating_point:
        raise SitError(f"{path} is {str(files.dtype)[6:]}, not latents")


def _has_npy(folder: Path) -> bool:
    return next(_npy_files(folder, ""), None) is not None


def _npy_files(folder: Path, prefix: str):
    """(name below `folder`, size) of every .npy file, in no order."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".npy") and entry.is_file():
                    yield prefix + entry.name, entry.stat().st_size
                elif entry.is_dir():
                    yield from _npy_files(folder / entry.name, f"{prefix}{entry.name}/")
    except OSError as error:
        raise SitError(f"cannot read {folder}: {error.strerror}") from None
