"""npz files of a mean and a covariance: ADM's and sit's own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sitcli.errors import SitError
from sitcli.features.base import Layer
from sitcli.metrics.moments import Gaussian
from sitcli.storage import locks
from sitcli.storage.files import make_folder, replacing, write_json
from sitcli.storage.npz import Npz
from sitcli.text import format_shape

MOST_FEATURES = 8192  # the widest layer that is read
OUR_NAMES = ("num", "features", "seed")  # sit's own arrays, beside ADM's
ADM_NAMES = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


def save_statistics(path: Path, gaussian: Gaussian, *, layer: str = "pool", **more: object) -> None:
    """Write an npz with ADM's names: `mu`, `sigma` (`mu_s`, `sigma_s` for the spatial layer).

    The file also holds `num` and the arrays in `more`.
    Raises SitError if it cannot be written, or another process is writing it.
    """
    mean, covariance = ADM_NAMES[layer]
    with locks.lock(path):
        try:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                values = {mean: gaussian.mean, covariance: gaussian.covariance}
                np.savez(file, **values, num=gaussian.num, **more)
        except OSError as error:
            raise SitError(f"cannot write {path}: {error.strerror}") from None


def load_statistics(path: Path) -> StatisticsFile | None:
    """The means and covariances in an npz, by layer; None if it holds none.

    Raises SitError if the file is damaged.
    """
    gaussians: dict[str, Gaussian] = {}
    with Npz(path) as npz:
        layers = {layer: pair for layer, pair in ADM_NAMES.items() if set(pair) <= set(npz.names)}
        facts = [name for name in OUR_NAMES if name in npz.names]
        more = {name: npz.read(name, most=1) for name in facts} if layers else {}
        num = more.get("num")
        if num is not None and (num.dtype.kind not in "iu" or num.size != 1 or num < 1):
            raise SitError(f"{path}: num is not a number of images")
        for layer, pair in layers.items():
            headers = [npz.header(name) for name in pair]
            mean, covariance = (npz.read(name, most=MOST_FEATURES**2) for name in pair)
            names = " and ".join(pair)
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
                shapes = " and ".join(format_shape(header.shape) for header in headers)
                raise SitError(f"{path}: {names}, {shapes}, do not fit together")
            if {mean.dtype.kind, covariance.dtype.kind} != {"f"}:
                raise SitError(f"{path}: {names} are not floating point")
            mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
            if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
                raise SitError(f"{path}: {names} are not finite")
            gaussians[layer] = Gaussian(mean, covariance, None if num is None else int(num))
    return StatisticsFile(gaussians, more) if gaussians else None


def load_kept_statistics(path: Path, layer: Layer) -> Statistics:
    """The statistics that `keep_statistics` wrote. Raises SitError if the file is damaged.

    Versions up to 0.7.0 wrote the distance between two halves into the same file: it is left out.
    """
    loaded = load_statistics(path)
    gaussian = loaded and loaded.gaussians.get(layer.name)
    if gaussian is None or gaussian.num is None or "seed" not in loaded.more:
        raise SitError(f"{path} is not complete")
    distances = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        for num, distance in json.loads(_beside(path).read_text()).items():
            distances[int(num)] = float(distance)
    return Statistics(gaussian, distances)


def keep_statistics(path: Path, statistics: Statistics, *, layer: Layer, seed: int) -> None:
    """Write statistics to `path`, which --reference takes too; distances go to .real.json beside.

    Raises SitError if they cannot be written, or another process is writing them.
    """
    make_folder(path.parent)
    facts = dict(seed=seed, features=layer.features.tag)
    save_statistics(path, statistics.gaussian, layer=layer.name, **facts)
    if not statistics.real_distances:
        return
    try:
        write_json(_beside(path), {str(n): d for n, d in statistics.real_distances.items()})
    except OSError as error:
        raise SitError(f"cannot write {_beside(path)}: {error.strerror}") from None


def _beside(path: Path) -> Path:
    return path.with_suffix(".real.json")


class StatisticsFile(NamedTuple):
    """The contents of an npz: the Gaussian of each layer, and the arrays among OUR_NAMES."""

    gaussians: Mapping[str, Gaussian]
    more: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a reference.

    real_distances: n -> the Frechet distance between n of its images, drawn at random, and the
    others.
    """

    gaussian: Gaussian
    real_distances: dict[int, float]
