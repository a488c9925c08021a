"""`sit evaluate` before it measures: what to compare with what, opened and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sitcli.commands.evaluate.options import refuse_options
from sitcli.commands.evaluate.sides import (
    Reference,
    indices_of_classes,
    shared_classes,
    size_of,
)
from sitcli.commands.newest import newest_samples
from sitcli.errors import SitError, UsageError
from sitcli.features.base import Extractor, Features, Layer
from sitcli.features.collect import most_kept
from sitcli.features.extractors import choose_features, load_extractor
from sitcli.features.statistics import StatisticsFile, load_statistics
from sitcli.images.sets import ImageSet, joined, kind_of, open_images
from sitcli.machine.devices import resolve_device
from sitcli.machine.world import device_name
from sitcli.metrics.metric import Metric
from sitcli.metrics.moments import Gaussian
from sitcli.metrics.subsamples import LEAST
from sitcli.metrics.table import METRICS
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.storage.hub import local_path
from sitcli.storage.locks import check_writable


def named_sets(settings: EvaluateSettings) -> list[Path]:
    """The sample sets that were named, else the newest. Raises UsageError for useless options."""
    refuse_options(settings)
    return [local_path(path) for path in settings.samples or [newest_samples()]]


def prepare(settings: EvaluateSettings, paths: list[Path]) -> Job:
    """Open and check the sets `paths` and their reference.

    Raises UsageError for options that do not fit, SitError for images that cannot be compared.
    """
    sets = []  # first, so that a wrong path is not reported as missing weights
    for path in paths:
        if kind_of(path) == "latent store":
            raise UsageError(
                f"{path} is a latent store, not samples", f"use it as --reference {path}"
            )
        sets.append(open_images(path))
    _check_sets(sets)
    features = _main_features(settings)
    metrics = [m for m in METRICS if getattr(settings, m) or (settings.all and METRICS[m].in_all)]
    if settings.all:  # --all takes the metrics that these features give
        metrics = [m for m in metrics if _gives(features, METRICS[m])]
    metrics = tuple(metrics) or ("fid",)
    layers = _layers(settings, metrics, features)
    reference = _resolve_reference(settings, sets, metrics)
    for samples in sets:
        check_writable(metrics_path(samples))
    _check_numbers(settings, metrics, sets, reference)
    return Job(
        metrics=metrics,
        layers=layers,
        sets=sets,
        reference=reference,
        bootstrap=settings.bootstrap is not None,
    )


def _main_features(settings: EvaluateSettings) -> Features:
    """The extractor of --features, or a metric's own if that is the only metric."""
    asked = [name for name in METRICS if getattr(settings, name)]
    own = {METRICS[name].own_features: name for name in asked if METRICS[name].own_features}
    name, weights = settings.features, settings.features_weights
    if settings.dinov2_weights is not None and "dinov2" not in {*own, name}:
        raise UsageError(
            "--dinov2-weights is for --fdd or --features dinov2",
            "remove --dinov2-weights, or add --fdd",
        )
    if name in own:
        raise UsageError(
            f"--fid with --features {name} is the same figure as --{own[name]}",
            f"remove --{own[name]}",
        )
    if weights is not None and name != EvaluateSettings.features:
        raise UsageError(
            f"--features-weights belongs to --features {EvaluateSettings.features}, not to {name}",
            "remove --features-weights",
        )
    left_open = name == EvaluateSettings.features and weights is None and not settings.all
    if left_open and len(own) == len(asked) == 1:
        (name,) = own  # no metric needs the default extractor
    return choose_features(name, _weights(settings))


def _weights(settings: EvaluateSettings) -> dict[str, Path | None]:
    """Where the weights of the extractors are, None if the user did not say."""
    return {
        EvaluateSettings.features: settings.features_weights,
        "dinov2": settings.dinov2_weights,
    }


def _gives(features: Features, row: Metric) -> bool:
    """Whether these features give what the metric needs."""
    return not row.needs or (features.has_classes and row.layer in features.layers)


def _layers(
    settings: EvaluateSettings, metrics: tuple[str, ...], features: Features
) -> dict[str, Layer]:
    """The layers that these metrics need, by their names in METRICS.

    Raises UsageError for a metric that the features cannot give.
    """
    layers = {"pool": Layer(features, "pool")}
    for metric in metrics:
        row = METRICS[metric]
        if row.own_features:
            own = choose_features(row.own_features, _weights(settings))
            layers[row.layer] = Layer(own, "pool")
        elif not _gives(features, row):
            raise UsageError(
                f"--{metric} needs {row.needs}, which --features {settings.features} does not give",
                f"remove --{metric}, or use --features inception",
            )
        else:
            layers[row.layer] = Layer(features, row.layer)
    needed = {METRICS[metric].layer for metric in metrics}
    return {name: layer for name, layer in layers.items() if name in needed or name == "pool"}


def _check_sets(sets: list[ImageSet]) -> None:
    for samples in sets:
        if samples.num < 2:
            raise SitError(f"{samples.path} holds {samples.num} image, and at least 2 are needed")
        if samples.size != sets[0].size:
            raise UsageError(
                f"{sets[0].path} is {size_of(sets[0])} and {samples.path} {size_of(samples)}: "
                "images that are compared must have one size",
                "run sit evaluate once for each",
            )
    places = [samples.path.resolve() for samples in sets]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"{place} is named twice", "name each set once")


def _resolve_reference(
    settings: EvaluateSettings, sets: list[ImageSet], metrics: tuple[str, ...]
) -> Reference | None:
    samples = sets[0]
    given = settings.reference and local_path(settings.reference)
    paths = [given] if given else _default_reference(samples)
    if not given and any(_default_reference(other) != paths for other in sets):
        raise UsageError(
            f"{sets[0].path} and others were made from different images",
            "add --reference with the images to compare them all with",
        )
    if not paths:
        if not any(METRICS[metric].compares for metric in metrics):
            return None
        raise UsageError(
            f"{samples.path} does not tell which images to compare it with",
            "add --reference with a folder or shards of images, a latent store, sample set or .npz",
        )
    path = paths[0]
    statistics = load_statistics(path) if kind_of(path) == "npz" else None
    try:
        images = joined([open_images(path, size=samples.size) for path in paths])
        path = images.path
    except SitError:
        if statistics is None:
            raise
        images = None  # an npz of statistics alone
    num, same = images.num if images is not None else 0, False
    chosen = np.arange(num)
    if settings.reference_classes == "same":
        chosen, same = indices_of_classes(sets, images, path)
        num = len(chosen)
    if images is None:
        _check_statistics_alone(path, statistics, settings, metrics)
    elif num < 2:
        raise SitError(f"the reference {path} holds {num} image, and at least 2 are needed")
    wanted = settings.reference_num or num
    if wanted > num:
        raise UsageError(
            f"--reference-num {wanted}: the reference {path} has {num:,} images",
            f"use at most --reference-num {num}",
        )
    indices = chosen[np.arange(wanted) * num // max(1, wanted)]
    return Reference(
        path=path,
        images=images,
        indices=indices,
        statistics=None if same else statistics,  # a file's statistics are of all classes
        classes=[
            shared_classes(s, images, np.arange(images.num) if same else indices) for s in sets
        ],
        same_classes=same,
    )


def _check_statistics_alone(
    path: Path, statistics: StatisticsFile, settings: EvaluateSettings, metrics: tuple[str, ...]
) -> None:
    lacking = [m for m in metrics if METRICS[m].compares and not METRICS[m].frechet]
    lacking += [
        m for m in metrics if METRICS[m].frechet and METRICS[m].layer not in statistics.gaussians
    ]
    if lacking or settings.reference_num is not None:
        option = f"--{lacking[0]}" if lacking else "--reference-num"
        raise UsageError(
            f"{path} holds statistics only ({', '.join(statistics.gaussians)}): {option} needs "
            "its images (arr_0)",
            "give a reference with images, or --fid alone",
        )


def _default_reference(samples: ImageSet) -> list[Path]:
    """The latent stores that the samples' run was trained on, which name their source images.

    Raises SitError if one is gone.
    """
    store = samples.meta.get("store")
    stores = samples.meta.get("stores") or ([] if store is None else [store])
    for store in stores:
        if not Path(store).exists():
            raise SitError(
                f"the latent store behind these samples, {store}, is not there any more",
                "add --reference with its new path, or with a folder of real images",
            )
    return [Path(store) for store in stores]


def metrics_path(samples: ImageSet) -> Path:
    """The path of metrics.json in a sample set's folder, or NAME.metrics.json beside others."""
    path = samples.path
    if samples.kind == "sample set" and path.is_dir():
        return path / "metrics.json"
    if samples.kind == "sample set" and path.name == "samples.h5":
        return path.with_name("metrics.json")
    path = path.resolve()
    return path.with_name(f"{path.name if path.is_dir() else path.stem}.metrics.json")


def device_for(settings: EvaluateSettings) -> torch.device:
    """The device of this process. Raises UsageError if there is no such device."""
    name = device_name(settings.device, gpus=settings.gpus, procs=settings.procs)
    return resolve_device(name)


def load_extractors(job: Job, device: torch.device) -> dict[Features, Extractor]:
    """The extractors that the job's layers need. Raises SitError if weights are missing."""
    wanted: dict[Features, list[str]] = {}
    for layer in job.layers.values():
        wanted.setdefault(layer.features, []).append(layer.name)
    return {features: load_extractor(features, device, names) for features, names in wanted.items()}


def widths_of(job: Job, extractors: Mapping[Features, Extractor]) -> dict[Layer, int]:
    """Number of features of an image in each layer.

    Raises UsageError if samples and reference differ in size but must not, or if there are too
    many images; SitError if a file's statistics are of another layer.
    """
    samples, reference = job.sets[0], job.reference
    fixed = all(layer.features.resizes for layer in job.layers.values())
    other = reference is not None and reference.images is not None
    if other and reference.images.size != samples.size and not fixed:
        raise UsageError(
            f"the samples are {size_of(samples)} and the reference {size_of(reference.images)}: "
            f"{job.layers['pool'].features.tag} compares images of one size",
            "give a --reference of the samples' size, or a folder, which is cropped to it",
        )
    trial = torch.zeros(2, 3, *samples.size, dtype=torch.uint8)
    widths = {}
    for features, extractor in extractors.items():
        for name, values in extractor.extract(trial).items():
            widths[Layer(features, name)] = values.shape[1]
    for metric in job.metrics:
        if METRICS[metric].frechet:
            _check_given(job, job.layers[METRICS[metric].layer], METRICS[metric].layer, widths)
    kept_alone = [m for m in job.metrics if not METRICS[m].frechet]
    numbers = {f"{s.path} has {s.num:,}": s.num for s in job.sets}
    if reference is not None and reference.images is not None:
        numbers[f"the reference has {len(reference.indices):,}"] = len(reference.indices)
    most = most_kept(max(widths.values()))
    for text, num in numbers.items():
        if num > most and (kept_alone or job.bootstrap):
            option = f"--{kept_alone[0]}" if kept_alone else "--bootstrap"
            hint = "--reference-num 50000" if "reference" in text else "use fewer samples"
            raise UsageError(f"{option} takes at most {most:,} images a side: {text}", hint)
    return widths


def _check_given(job: Job, layer: Layer, name: str, widths: Mapping[Layer, int]) -> None:
    """Raise SitError unless a file's statistics are of this layer."""
    given = job.given(name)
    if given is None:
        return
    more, tag = job.reference.statistics.more, layer.features.tag
    made_with = str(more.get("features", tag))
    if made_with != tag or len(given.mean) != widths[layer]:
        raise SitError(
            f"{job.reference.path} holds statistics of {len(given.mean)} features"
            f"{f' of {made_with}' if 'features' in more else ''}; {tag} gives {widths[layer]}",
            "give a reference made with the same extractor, or one with images",
        )


def _check_numbers(
    settings: EvaluateSettings,
    metrics: tuple[str, ...],
    sets: list[ImageSet],
    reference: Reference | None,
) -> None:
    numbers = {str(samples.path): samples.num for samples in sets}
    for metric in metrics:
        both = dict(numbers)
        if reference is not None and reference.images is not None and METRICS[metric].compares:
            both["the reference"] = len(reference.indices)
        for side, num in both.items():
            if METRICS[metric].compares and num < METRICS[metric].least:
                raise SitError(
                    f"--{metric} needs {METRICS[metric].least} images a side: {side} has {num}"
                )
    few = min(sets, key=lambda samples: samples.num)
    if settings.bootstrap is not None and few.num < LEAST:
        raise SitError(f"--bootstrap needs {LEAST} samples: {few.path} has {few.num}")
    splits = settings.isc_splits
    if splits is not None and "isc" not in metrics:
        raise UsageError("--isc-splits is for --isc", "remove --isc-splits, or add --isc")
    fewest = min(numbers.values())
    if splits is not None and splits > fewest // 2:
        raise UsageError(
            f"--isc-splits {splits}: a split needs 2 samples, and there are {fewest}",
            f"use at most --isc-splits {fewest // 2}",
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """An evaluation with everything opened and checked; layers: by their names in METRICS."""

    metrics: tuple[str, ...]
    layers: dict[str, Layer]
    sets: list[ImageSet]
    reference: Reference | None
    bootstrap: bool

    def given(self, name: str) -> Gaussian | None:
        """The statistics of layer `name` in the reference's file, None if it has none."""
        statistics = self.reference and self.reference.statistics
        return statistics.gaussians.get(name) if statistics else None

    def tags(self) -> list[str]:
        """The extractors' tags, each once."""
        return list(dict.fromkeys(layer.features.tag for layer in self.layers.values()))
