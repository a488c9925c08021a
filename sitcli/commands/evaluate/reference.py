"""The reference's features, statistics and floors, kept for the next evaluation."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sitcli.commands.evaluate.job import Job
from sitcli.errors import SitError
from sitcli.events import Event, Note, Warn
from sitcli.features.base import Layer
from sitcli.features.collect import Count, collect, kept_path
from sitcli.features.statistics import Statistics, keep_statistics, load_kept_statistics
from sitcli.machine.ranks import events_from_rank_0
from sitcli.machine.seeds import Philox, Stream
from sitcli.machine.world import World
from sitcli.metrics.frechet import frechet_distance
from sitcli.metrics.metric import Collected, Target
from sitcli.metrics.moments import Moments, gaussian_of
from sitcli.metrics.table import METRICS
from sitcli.settings.evaluate import EvaluateSettings


def measure_reference(
    job: Job,
    settings: EvaluateSettings,
    widths: Mapping[Layer, int],
    world: World,
    shared: Mapping[str, Any],
) -> Generator[Event, None, tuple[dict[Layer, Statistics], dict[Layer, Collected], Count]]:
    """Statistics and features of the reference's images, and the count of all images to extract.

    Statistics that an earlier evaluation kept are used again. All is empty without images.
    """
    frechet = {METRICS[m].layer for m in job.metrics if METRICS[m].frechet}
    others = {METRICS[m].layer for m in job.metrics if not METRICS[m].frechet}
    images = job.reference.images if job.reference is not None else None
    total = sum(samples.num for samples in job.sets)
    known: dict[Layer, Statistics] = {}
    if images is None:
        return known, {}, Count(total=total)
    for name in sorted(frechet):
        layer = job.layers[name]
        found = yield from events_from_rank_0(
            world, lambda layer=layer: _known(job, layer, settings.seed)
        )
        if found is not None:
            known[layer] = found
    needed = [n for n in job.layers if n in others or (n in frechet and job.layers[n] not in known)]
    if not needed:
        return known, {}, Count(total=total)
    indices = job.reference.indices
    count = Count(total=total + len(indices))
    mine = {job.layers[name]: widths[job.layers[name]] for name in needed}
    halves = _halves(len(indices), settings.seed)
    real = yield from collect(images, indices, halves, mine, count=count, **shared)
    for layer in [job.layers[name] for name in needed if name in frechet]:
        if world.rank == 0 and layer not in known:
            known[layer] = yield from _new_statistics(job, layer, real[layer], settings.seed)
    return known, real, count


def targets_of(job: Job, known: Mapping[Layer, Statistics]) -> dict[str, Target]:
    """The targets of the Frechet distances, by the layers' names in METRICS."""
    targets = {}
    for name, layer in job.layers.items():
        given, own = job.given(name), known.get(layer)
        floor = own.floor if own is not None else None
        if given is not None:
            names = "mu_s and sigma_s" if name == "spatial" else "mu and sigma"
            targets[name] = Target(given, f"the file's {names}", floor)
        elif own is not None:
            targets[name] = Target(own.gaussian, "of its images", floor)
    return targets


def by_layer_name(job: Job, collected: Mapping[Layer, Collected]) -> dict[str, Collected]:
    """Collected features by the layers' names in METRICS."""
    return {n: collected[layer] for n, layer in job.layers.items() if layer in collected}


def _halves(num: int, seed: int) -> np.ndarray:
    """(num,) of 0 and 1: two random halves of the reference, a function of the seed."""
    parts = np.zeros(num, np.uint8)
    order = Philox(seed).draws(Stream.HALVES, np.zeros(1, np.int64)).permutation(num)[0].numpy()
    parts[order[num // 2 :]] = 1
    return parts


def _known(job: Job, layer: Layer, seed: int) -> Generator[Event, None, Statistics | None]:
    """Statistics of the reference's images that an earlier evaluation kept, None if none did."""
    path = _statistics_path(job, layer, seed)
    if not path.exists():
        return None
    try:
        statistics = load_kept_statistics(path, layer)
    except SitError as error:
        yield Warn(f"made again: {error.message}")
        return None
    yield Note(f"statistics of the reference: {path}")
    return statistics


def _new_statistics(
    job: Job, layer: Layer, real: Collected, seed: int
) -> Generator[Event, None, Statistics]:
    """Statistics of the reference's images, kept for the next evaluation."""
    first, second = real.moments
    floor = None
    if min(first.num, second.num) >= 2:
        floor = frechet_distance(gaussian_of(first), gaussian_of(second))
    whole = Moments(len(first.mean))
    whole.merge(first)
    whole.merge(second)
    statistics = Statistics(gaussian_of(whole), floor)
    try:
        keep_statistics(_statistics_path(job, layer, seed), statistics, layer=layer, seed=seed)
    except SitError as error:
        yield Warn(f"statistics are not kept for another time: {error.message}")
    return statistics


def _statistics_path(job: Job, layer: Layer, seed: int) -> Path:
    images, indices = job.reference.images, job.reference.indices
    return kept_path(images, indices, layer, f"-seed{seed}.npz")
