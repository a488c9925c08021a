"""The reference's features, statistics and figures of its own images, kept for the next time."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sitcli.commands.evaluate.job import Job
from sitcli.errors import SitError
from sitcli.events import Event, Note, Warn
from sitcli.features.base import Layer
from sitcli.features.collect import Count, collect, kept_path, most_kept
from sitcli.features.statistics import (
    Statistics,
    keep_statistics,
    load_kept_statistics,
)
from sitcli.machine.ranks import events_from_rank_0
from sitcli.machine.seeds import Philox, Stream
from sitcli.machine.world import World
from sitcli.metrics.frechet import frechet_distance
from sitcli.metrics.metric import Collected, Real, Target
from sitcli.metrics.moments import gaussian_of, merged, moments_of
from sitcli.metrics.table import METRICS
from sitcli.settings.evaluate import EvaluateSettings


@dataclass(frozen=True)
class MeasuredReference:
    """What is known of the reference's images.

    ranks: (R,), the place of each in a random order; the first n of it stand in for n samples.
    statistics: of each layer that a Frechet distance needs. collected: features and sums.
    """

    ranks: np.ndarray
    statistics: dict[Layer, Statistics] = field(default_factory=dict)
    collected: dict[Layer, Collected] = field(default_factory=dict)

    def stand_ins(self, num: int) -> np.ndarray | None:
        """(R,) bool: the images that stand in for `num` samples; None if there are fewer."""
        return self.ranks < num if num <= len(self.ranks) else None

    def targets(self, job: Job, num: int) -> dict[str, Target]:
        """The targets of the Frechet distances of `num` samples, by the layers' names."""
        targets = {}
        for name, layer in job.layers.items():
            given, own = job.given(name), self.statistics.get(layer)
            distance = own.real_distances.get(num) if own is not None else None
            real = None if distance is None else Real(distance, (num, len(self.ranks) - num))
            if given is not None:
                names = "mu_s and sigma_s" if name == "spatial" else "mu and sigma"
                targets[name] = Target(given, f"the file's {names}", real)
            elif own is not None:
                targets[name] = Target(own.gaussian, "of its images", real)
        return targets


def measure_reference(
    job: Job,
    settings: EvaluateSettings,
    widths: Mapping[Layer, int],
    world: World,
    shared: Mapping[str, Any],
) -> Generator[Event, None, tuple[MeasuredReference, Count]]:
    """Statistics and features of the reference's images, and the count of all images to extract.

    Statistics that an earlier evaluation kept are used again. All is empty without images.
    """
    images = job.reference.images if job.reference is not None else None
    total = sum(samples.num for samples in job.sets)
    if images is None:
        return MeasuredReference(np.empty(0, np.int64)), Count(total=total)
    indices = job.reference.indices
    labels = None if images.labels is None else images.labels[indices]
    found = MeasuredReference(random_ranks(len(indices), labels, settings.seed))
    for layer in _layers(job, frechet=True):
        known = yield from events_from_rank_0(
            world, lambda layer=layer: _known(job, layer, settings.seed)
        )
        if known is not None:
            found.statistics[layer] = known
    needed, passes = _to_collect(job, found, widths)
    count = Count(total=total + len(indices) * bool(needed) + sum(passes))
    if needed:
        yield from _measure_all(job, found, needed, world, count, settings.seed, shared)
    for num, layers in passes.items():
        mine = {layer: widths[layer] for layer in layers}
        parts = np.zeros(num, np.uint8)
        chosen = yield from collect(
            images, indices[found.ranks < num], parts, mine, count=count, **shared
        )
        for layer, part in chosen.items():  # of rank 0 alone
            known, (first,) = found.statistics[layer], part.moments
            rest = moments_of(known.gaussian).without(first)
            distance = frechet_distance(gaussian_of(first), gaussian_of(rest))
            known.real_distances[num] = distance
            yield from _keep(job, layer, known, settings.seed)
    return found, count


def random_ranks(num: int, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """(num,), the place of each image in a random order, a function of the seed.

    labels: (num,). The first n of the order have every class as often as its share of the images
    says, to one image: without that, the few stand-ins of a small sample set would be far away for
    the classes that they happen to be of.
    """
    random = Philox(seed).draws(Stream.STAND_INS, np.array([num]))
    order = random.permutation(num)[0].numpy()
    if labels is not None:
        shares = np.empty(num)  # of its class that an image ends, in the random order
        for label in np.unique(labels):
            members = np.flatnonzero(labels[order] == label)
            shares[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(shares, kind="stable")]
    return np.argsort(order)


def by_layer_name(job: Job, collected: Mapping[Layer, Collected]) -> dict[str, Collected]:
    """Collected features by the layers' names in METRICS."""
    return {n: collected[layer] for n, layer in job.layers.items() if layer in collected}


def _layers(job: Job, *, frechet: bool) -> list[Layer]:
    """The layers of the Frechet distances, or of the other metrics."""
    names = {METRICS[m].layer for m in job.metrics if METRICS[m].frechet == frechet}
    return [job.layers[name] for name in sorted(names)]


def _numbers(job: Job) -> list[int]:
    """The different numbers of samples that as many images of the reference can stand in for."""
    return sorted({s.num for s in job.sets if s.num <= len(job.reference.indices)})


def _compared(job: Job) -> list[int]:
    """Those that leave the reference as many images again."""
    return [num for num in _numbers(job) if 2 * num <= len(job.reference.indices)]


def _to_collect(
    job: Job, found: MeasuredReference, widths: Mapping[Layer, int]
) -> tuple[dict[Layer, int], dict[int, list[Layer]]]:
    """The layers to collect of all images, with their widths, and those of the stand-ins alone.

    If the features of all images are kept they are read again. If they are too many to keep, a
    distance that is lacking takes the stand-ins alone: the sums of all images are kept.
    """
    needed = {layer: widths[layer] for layer in _layers(job, frechet=False)}
    passes: dict[int, list[Layer]] = {}
    for layer in _layers(job, frechet=True):
        known = found.statistics.get(layer)
        lacking = [n for n in _compared(job) if known and n not in known.real_distances]
        if known is None or (lacking and len(job.reference.indices) <= most_kept(widths[layer])):
            needed[layer] = widths[layer]
        elif layer not in needed:
            for num in lacking:
                passes.setdefault(num, []).append(layer)
    return needed, passes


def _measure_all(
    job: Job,
    found: MeasuredReference,
    needed: dict[Layer, int],
    world: World,
    count: Count,
    seed: int,
    shared: Mapping[str, Any],
) -> Generator[Event, None, None]:
    """Collect the needed layers of all images, and keep what is new of their statistics."""
    cuts = _numbers(job)
    # Part i has the images that stand in for cuts[i] samples but for no fewer.
    parts = np.searchsorted(cuts, found.ranks, side="right").astype(np.uint8)
    images, indices = job.reference.images, job.reference.indices
    real = yield from collect(images, indices, parts, needed, count=count, **shared)
    found.collected.update(real)
    if world.rank:
        return
    for layer in [layer for layer in _layers(job, frechet=True) if layer in needed]:
        sums = real[layer].moments
        known = found.statistics.get(layer)
        if known is None:
            known = found.statistics[layer] = Statistics(gaussian_of(merged(sums)), {})
        for i, num in enumerate(cuts):
            if num in _compared(job) and num >= 2:
                first, rest = merged(sums[: i + 1]), merged(sums[i + 1 :])
                distance = frechet_distance(gaussian_of(first), gaussian_of(rest))
                known.real_distances[num] = distance
        yield from _keep(job, layer, known, seed)


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


def _keep(
    job: Job, layer: Layer, statistics: Statistics, seed: int
) -> Generator[Event, None, None]:
    """Keep statistics of the reference's images for the next evaluation."""
    try:
        keep_statistics(_statistics_path(job, layer, seed), statistics, layer=layer, seed=seed)
    except SitError as error:
        yield Warn(f"statistics are not kept for another time: {error.message}")


def _statistics_path(job: Job, layer: Layer, seed: int) -> Path:
    images, indices = job.reference.images, job.reference.indices
    return kept_path(images, indices, layer, f"-seed{seed}.npz")
