"""``sit evaluate``: how far samples are from real images, and how far real images are apart.

Every figure comes with its floor: the same metric between two random halves of the reference.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli import __version__
from sitcli.errors import SitError, UsageError
from sitcli.events import Event, Note, Progress, Result, Stage, Table, Warn
from sitcli.io.distances import Gaussian, Moments, frechet_distance, gaussian_of
from sitcli.io.extraction import (
    Collected,
    Count,
    Statistics,
    StatisticsFile,
    collect,
    keep_statistics,
    kept_path,
    load_kept_statistics,
    load_statistics,
    most_kept,
)
from sitcli.io.features import Extractor, Features, Layer, choose_features, load_extractor
from sitcli.io.files import hash_file, write_json
from sitcli.io.find import newest_samples
from sitcli.io.hub import local_path
from sitcli.io.imagesets import ImageSet, joined, kind_of, open_images
from sitcli.io.launch import generator, quiet_libraries, resolve_device, tune_cpu
from sitcli.io.processes import World, device_name, planned_size, world_for
from sitcli.io.ranks import from_first, led, meeting, together, watching
from sitcli.io.rows import check_writable
from sitcli.settings import EvaluateSettings, SampleSettings
from sitcli.stages.likelihood import refuse_options
from sitcli.stages.metrics import METRICS, Evidence, Measured, Target
from sitcli.stages.sample import OPTIONS

FORMAT_VERSION = 1
FEW_SAMPLES = 10_000
NORMAL_95 = 1.959964  # standard deviations each way of a 95% interval


def evaluate(settings: EvaluateSettings) -> Stage:
    """Compare sample sets with a reference and write metrics.json beside each.

    Of several processes each extracts its share of the features; the first computes the figures.
    Raises UsageError for metrics the features cannot give, SitError for what cannot be read or
    compared.
    """
    quiet_libraries()
    world = world_for(gpus=settings.gpus, procs=settings.procs)
    with meeting(world):
        # Another sample set may be completed while we look: one rank decides for all.
        paths = from_first(world, lambda: _named(settings))
        task = together(world, lambda: _resolve(settings, paths))
        for samples in task.sets:
            yield Note(f"samples: {_describe(samples, samples.num)}")
        if task.reference is not None:
            yield Note(f"reference: {task.reference.text}")
        for text in _warnings(task):
            yield Warn(text)
        device = together(world, lambda: _device(settings))
        tune_cpu(device)
        extractors = together(world, lambda: _load_extractors(task, device))
        widths = together(world, lambda: _widths(task, extractors))
        with watching(world) as check_peers:
            shared = dict(
                summed=[task.layers[METRICS[m].layer] for m in task.metrics if METRICS[m].frechet],
                extractors=extractors,
                world=world,
                check_peers=check_peers,
                batch_size=settings.batch_size,
            )
            known, real, count = yield from _reference(task, settings, widths, world, shared)
            fakes = []
            for samples in task.sets:
                parts = np.zeros(samples.num, np.uint8)
                indices = np.arange(samples.num)
                fake = yield from collect(samples, indices, parts, widths, count=count, **shared)
                fakes.append(fake)
    if world.rank:
        return Result()
    targets = _targets(task, known)
    results = []
    for samples, fake in zip(task.sets, fakes, strict=True):
        evidence = Evidence(
            fake=_by_name(task, fake),
            real=_by_name(task, real),
            targets=targets,
            logits=extractors[task.layers["pool"].features].logits,
            seed=settings.seed,
            ordered=samples.ordered,
            splits=settings.isc_splits,
        )
        figures = []
        for metric in task.metrics:
            yield Progress(done=count.total, total=count.total, text=f"computing {metric}")
            for measured in METRICS[metric].measure(evidence):
                interval = yield from _interval(measured, settings, count)
                figures.append(_figure(task, samples, metric, measured, interval))
        _write(samples, figures)
        results.append(figures)
    return _report(task, settings, results)


def plan(settings: EvaluateSettings) -> Result:
    """What `evaluate` would do; opens what it would read, writes nothing."""
    task = _resolve(settings, _named(settings))
    _device(settings)
    reference = task.reference
    num_reference = len(reference.indices) if reference is not None else 0
    num = sum(samples.num for samples in task.sets)
    outs = [_metrics_path(samples) for samples in task.sets]
    processes = planned_size(gpus=settings.gpus, procs=settings.procs)
    summary = {
        "metrics": ", ".join(task.metrics),
        "samples": "; ".join(_describe(samples, samples.num) for samples in task.sets),
        "reference": reference.text if reference is not None else "none",
        "features": ", ".join(task.tags()),
        "extractor": f"{num + num_reference:,} images at most; kept features are used again",
        "processes": str(processes),
        "would write": f"{', '.join(map(str, outs))}, and features in "
        + ", ".join(str(samples.stats_folder) for samples in task.sets),
    }
    data = {
        "dry_run": True,
        "metrics": list(task.metrics),
        "samples": [{"path": str(s.path), "num": s.num} for s in task.sets],
        "reference": reference and {"path": str(reference.path), "num": num_reference},
        "features": [_features_record(layer.features) for layer in task.layers.values()],
        "processes": processes,
        "out": [str(out) for out in outs],
    }
    return Result(summary=summary, data=data)


def _named(settings: EvaluateSettings) -> list[Path]:
    """The sample sets that were named, or the newest."""
    refuse_options(settings)
    return [local_path(path) for path in settings.samples or [newest_samples()]]


def _resolve(settings: EvaluateSettings, paths: list[Path]) -> _Task:
    metrics = tuple(m for m in METRICS if getattr(settings, m) or (settings.all and m != "fdd"))
    features = _main_features(settings)
    if settings.all:
        # Without class probabilities or InceptionV3's map there is less to have.
        lacking = {"isc", "sfid"} if features.name != "inception" else set()
        metrics = tuple(m for m in metrics if m not in lacking)
    metrics = metrics or ("fid",)
    layers = _layers(settings, metrics, features)
    sets = []
    for path in paths:
        if kind_of(path) == "latent store":
            raise UsageError(f"{path} is a latent store, not samples", f"--reference {path}")
        sets.append(open_images(path))
    _check_sets(sets)
    reference = _resolve_reference(settings, sets, metrics)
    for samples in sets:
        check_writable(_metrics_path(samples))
    _check_numbers(settings, metrics, sets, reference)
    return _Task(
        metrics=metrics,
        layers=layers,
        sets=sets,
        reference=reference,
        bootstrap=settings.bootstrap is not None,
    )


def _main_features(settings: EvaluateSettings) -> Features:
    weights = settings.features_weights
    if settings.dinov2_weights is not None and not (settings.fdd or settings.features == "dinov2"):
        raise UsageError("--dinov2-weights is for --fdd or --features dinov2", "leave it out")
    only_fdd = settings.fdd and not settings.all
    only_fdd = only_fdd and not any(getattr(settings, m) for m in METRICS if m != "fdd")
    name = settings.features
    if only_fdd and name == "inception" and weights is None:
        name = "dinov2"  # nothing is asked of InceptionV3
    elif settings.fdd and name == "dinov2":
        raise UsageError("--features dinov2 --fid is --fdd already", "leave out --fdd")
    return choose_features(name, weights, dinov2_weights=settings.dinov2_weights)


def _layers(
    settings: EvaluateSettings, metrics: tuple[str, ...], features: Features
) -> dict[str, Layer]:
    """The layers these metrics need, by the names METRICS has for them."""
    layers = {"pool": Layer(features, "pool")}
    for metric in metrics:
        layer = METRICS[metric].layer
        if layer == "dinov2":
            dinov2 = choose_features("dinov2", dinov2_weights=settings.dinov2_weights)
            layers[layer] = Layer(dinov2, "pool")
        elif layer not in features.layers or (metric == "isc" and features.name != "inception"):
            what = "class probabilities" if metric == "isc" else "InceptionV3's mixed_6 map"
            raise UsageError(
                f"--{metric} needs {what}, which --features {settings.features} does not give",
                f"leave out --{metric}, or use --features inception",
            )
        else:
            layers[layer] = Layer(features, layer)
    needed = {METRICS[metric].layer for metric in metrics}
    return {name: layer for name, layer in layers.items() if name in needed or name == "pool"}


def _check_sets(sets: list[ImageSet]) -> None:
    for samples in sets:
        if samples.num < 2:
            raise SitError(f"{samples.path} holds {samples.num} image, and at least 2 are needed")
        if samples.size != sets[0].size:
            raise UsageError(
                f"{sets[0].path} is {_size(sets[0])} and {samples.path} {_size(samples)}: images "
                "that are compared must have one size",
                "type a command for each",
            )
    places = [samples.path.resolve() for samples in sets]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"{place} is named twice", "name each set once")


def _resolve_reference(
    settings: EvaluateSettings, sets: list[ImageSet], metrics: tuple[str, ...]
) -> _Reference | None:
    samples = sets[0]
    given = settings.reference and local_path(settings.reference)
    paths = [given] if given else _default_reference(samples)
    if not given and any(_default_reference(other) != paths for other in sets):
        raise UsageError(
            f"{sets[0].path} and others were made from different images",
            "give the images to compare them all with: --reference",
        )
    if not paths:
        if not any(METRICS[metric].compares for metric in metrics):
            return None
        raise UsageError(
            f"{samples.path} does not tell which images to compare it with",
            "give a folder, latent store, sample set or .npz with --reference",
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
    num = images.num if images is not None else 0
    if images is None:
        _check_statistics_alone(path, statistics, settings, metrics)
    elif num < 2:
        raise SitError(f"the reference {path} holds {num} image, and at least 2 are needed")
    wanted = settings.reference_num or num
    if wanted > num:
        raise UsageError(f"--reference-num {wanted}: the reference {path} has {num:,} images")
    indices = np.arange(wanted) * num // max(1, wanted)
    return _Reference(path=path, images=images, indices=indices, statistics=statistics)


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
    """The latent stores the samples' run was trained on; they know their source images."""
    store = samples.meta.get("store")
    stores = samples.meta.get("stores") or ([] if store is None else [store])
    for store in stores:
        if not Path(store).exists():
            raise SitError(
                f"the latent store behind these samples, {store}, is not there any more",
                "give it, or a folder of real images, with --reference",
            )
    return [Path(store) for store in stores]


def _metrics_path(samples: ImageSet) -> Path:
    """metrics.json within a sample set's folder; NAME.metrics.json beside anything else."""
    path = samples.path
    if samples.kind == "sample set" and path.is_dir():
        return path / "metrics.json"
    if samples.kind == "sample set" and path.name == "samples.h5":
        return path.with_name("metrics.json")
    path = path.resolve()
    return path.with_name(f"{path.name if path.is_dir() else path.stem}.metrics.json")


def _warnings(task: _Task) -> list[str]:
    features, reference = task.layers["pool"].features, task.reference
    warnings = []
    fewest = min(samples.num for samples in task.sets)
    if not features.official:
        label = features.label("FID")
        warnings.append(
            f"{label} is not FID: compare it with {label} of other samples against this "
            "reference, never with a published figure"
        )
    if fewest < FEW_SAMPLES:
        warnings.append(
            f"{fewest:,} samples are fewer than {FEW_SAMPLES:,}: the figures are biased and "
            "cannot be compared with published ones (of 50,000 samples) nor with those of "
            "another number of samples"
        )
    if len({samples.num for samples in task.sets}) > 1:
        warnings.append("the sets differ in number of images, which alone moves most figures")
    if reference is None:
        return [*warnings, "there is no reference, so no floor can be computed"]
    size = task.sets[0].size
    if reference.images is None:
        warnings.append(
            f"{reference.path} holds statistics only, no images: no floor can be computed"
        )
    elif reference.images.size != size and features.name in ("inception", "dinov2"):
        warnings.append(
            f"the samples are {_size(task.sets[0])} and the reference {_size(reference.images)}: "
            "the extractor resizes both, and the difference in sharpness counts"
        )
    unnamed = reference.statistics and "features" not in reference.statistics.more
    if unnamed and not features.official:
        warnings.append(
            f"{reference.path} does not tell what made its statistics; a figure means something "
            f"only if it was {features.tag}"
        )
    return warnings


def _device(settings: EvaluateSettings) -> torch.device:
    name = device_name(settings.device, gpus=settings.gpus, procs=settings.procs)
    return resolve_device(name)


def _load_extractors(task: _Task, device: torch.device) -> dict[Features, Extractor]:
    wanted: dict[Features, list[str]] = {}
    for layer in task.layers.values():
        wanted.setdefault(layer.features, []).append(layer.name)
    return {features: load_extractor(features, device, names) for features, names in wanted.items()}


def _widths(task: _Task, extractors: Mapping[Features, Extractor]) -> dict[Layer, int]:
    """Number of features an image has in each layer.

    Raises UsageError if samples and reference differ in it, SitError if a file's statistics do.
    """
    samples, reference = task.sets[0], task.reference
    fixed = all(layer.features.name in ("inception", "dinov2") for layer in task.layers.values())
    other = reference is not None and reference.images is not None
    if other and reference.images.size != samples.size and not fixed:
        raise UsageError(
            f"the samples are {_size(samples)} and the reference {_size(reference.images)}: "
            f"{task.layers['pool'].features.tag} compares images of one size",
            "give a --reference of the samples' size; a folder is cropped to it",
        )
    trial = torch.zeros(2, 3, *samples.size, dtype=torch.uint8)
    widths = {}
    for features, extractor in extractors.items():
        for name, values in extractor.extract(trial).items():
            widths[Layer(features, name)] = values.shape[1]
    for metric in task.metrics:
        if METRICS[metric].frechet:
            _check_given(task, task.layers[METRICS[metric].layer], METRICS[metric].layer, widths)
    kept_alone = [m for m in task.metrics if not METRICS[m].frechet]
    numbers = {f"{s.path} has {s.num:,}": s.num for s in task.sets}
    if reference is not None and reference.images is not None:
        numbers[f"the reference has {len(reference.indices):,}"] = len(reference.indices)
    most = most_kept(max(widths.values()))
    for text, num in numbers.items():
        if num > most and (kept_alone or task.bootstrap):
            option = f"--{kept_alone[0]}" if kept_alone else "--bootstrap"
            hint = "--reference-num 50000" if "reference" in text else "use fewer samples"
            raise UsageError(f"{option} takes at most {most:,} images a side: {text}", hint)
    return widths


def _check_given(task: _Task, layer: Layer, name: str, widths: Mapping[Layer, int]) -> None:
    """SitError unless a file's statistics are of this layer."""
    given = task.given(name)
    if given is None:
        return
    more, tag = task.reference.statistics.more, layer.features.tag
    made_with = str(more.get("features", tag))
    if made_with != tag or len(given.mean) != widths[layer]:
        raise SitError(
            f"{task.reference.path} holds statistics of {len(given.mean)} features"
            f"{f' of {made_with}' if 'features' in more else ''}; {tag} gives {widths[layer]}",
            "give a reference made with the same extractor, or one with images",
        )


def _check_numbers(
    settings: EvaluateSettings,
    metrics: tuple[str, ...],
    sets: list[ImageSet],
    reference: _Reference | None,
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
    splits = settings.isc_splits
    if splits is not None and "isc" not in metrics:
        raise UsageError("--isc-splits is for --isc", "leave it out, or add --isc")
    fewest = min(numbers.values())
    if splits is not None and splits > fewest // 2:
        raise UsageError(
            f"--isc-splits {splits}: of {fewest} samples a split needs 2",
            f"at most {fewest // 2}",
        )


def _reference(
    task: _Task,
    settings: EvaluateSettings,
    widths: Mapping[Layer, int],
    world: World,
    shared: Mapping[str, Any],
) -> Generator[Event, None, tuple[dict[Layer, Statistics], dict[Layer, Collected], Count]]:
    """What the reference's images give: statistics, kept ones if there are any, and features."""
    frechet = {METRICS[m].layer for m in task.metrics if METRICS[m].frechet}
    others = {METRICS[m].layer for m in task.metrics if not METRICS[m].frechet}
    images = task.reference.images if task.reference is not None else None
    total = sum(samples.num for samples in task.sets)
    known: dict[Layer, Statistics] = {}
    if images is None:
        return known, {}, Count(total=total)
    for name in sorted(frechet):
        layer = task.layers[name]
        found = yield from led(world, lambda layer=layer: _known(task, layer, settings.seed))
        if found is not None:
            known[layer] = found
    needed = [
        n for n in task.layers if n in others or (n in frechet and task.layers[n] not in known)
    ]
    if not needed:
        return known, {}, Count(total=total)
    indices = task.reference.indices
    count = Count(total=total + len(indices))
    mine = {task.layers[name]: widths[task.layers[name]] for name in needed}
    halves = _halves(len(indices), settings.seed)
    real = yield from collect(images, indices, halves, mine, count=count, **shared)
    for layer in [task.layers[name] for name in needed if name in frechet]:
        if world.rank == 0 and layer not in known:
            known[layer] = yield from _new_statistics(task, layer, real[layer], settings.seed)
    return known, real, count


def _targets(task: _Task, known: Mapping[Layer, Statistics]) -> dict[str, Target]:
    """What the Frechet distances are taken to, by the layers' names in METRICS."""
    targets = {}
    for name, layer in task.layers.items():
        given, own = task.given(name), known.get(layer)
        floor = own.floor if own is not None else None
        if given is not None:
            names = "mu_s and sigma_s" if name == "spatial" else "mu and sigma"
            targets[name] = Target(given, f"the file's {names}", floor)
        elif own is not None:
            targets[name] = Target(own.gaussian, "of its images", floor)
    return targets


def _by_name(task: _Task, collected: Mapping[Layer, Collected]) -> dict[str, Collected]:
    return {n: collected[layer] for n, layer in task.layers.items() if layer in collected}


def _halves(num: int, seed: int) -> np.ndarray:
    """(num,) of 0 and 1: two random halves of the reference, a function of the seed."""
    parts = np.zeros(num, np.uint8)
    order = torch.randperm(num, generator=generator(seed, "halves")).numpy()
    parts[order[num // 2 :]] = 1
    return parts


def _known(task: _Task, layer: Layer, seed: int) -> Generator[Event, None, Statistics | None]:
    """Statistics of the reference's images that an earlier evaluation kept."""
    path = _statistics_path(task, layer, seed)
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
    task: _Task, layer: Layer, real: Collected, seed: int
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
        keep_statistics(_statistics_path(task, layer, seed), statistics, layer=layer, seed=seed)
    except SitError as error:
        yield Warn(f"statistics are not kept for another time: {error.message}")
    return statistics


def _statistics_path(task: _Task, layer: Layer, seed: int) -> Path:
    images, indices = task.reference.images, task.reference.indices
    return kept_path(images, indices, layer, f"-seed{seed}.npz")


def _interval(
    measured: Measured, settings: EvaluateSettings, count: Count
) -> Generator[Event, None, dict[str, Any] | None]:
    """A 95% interval from the bootstrap, where it was asked for and the figure has one.

    The figure plus and minus 1.96 standard deviations of it over resamples of the samples: not
    quantiles, since resamples repeat images, which moves a Frechet distance upward. The reference
    is held fixed.
    """
    if settings.bootstrap is None or measured.resamples is None:
        return None
    values = []
    for value in measured.resamples(number=settings.bootstrap, seed=settings.seed):
        values.append(value)
        text = f"{measured.name}: resample {len(values)} of {settings.bootstrap}"
        yield Progress(done=count.total, total=count.total, text=text)
    half = NORMAL_95 * float(np.std(values, ddof=1))
    low, high = measured.value - half, measured.value + half
    return {"level": 0.95, "low": low, "high": high, "resamples": settings.bootstrap}


def _figure(
    task: _Task,
    samples: ImageSet,
    metric: str,
    measured: Measured,
    interval: dict[str, Any] | None,
) -> dict[str, Any]:
    """One entry of metrics.json: a figure and all it depends on beside the samples."""
    features = task.layers[METRICS[metric].layer].features
    label = features.label(measured.name)
    if not math.isfinite(measured.value):
        raise SitError(f"{label} of {samples.path} is not a finite number")
    return {
        "metric": label,
        "value": measured.value,
        "std": measured.spread,
        "interval": interval,
        "num_samples": samples.num,
        "floor": measured.floor,
        "recipe": measured.recipe,
        "features": _features_record(features),
        "reference": task.reference and task.reference.record(measured.floor is not None),
        "sit_version": __version__,
    }


def _features_record(features: Features) -> dict[str, Any]:
    return {
        "name": features.name,
        "weights_sha256": features.hash or None,
        "official": features.official,
    }


def _samples_record(samples: ImageSet) -> dict[str, Any]:
    return {
        "path": str(samples.path.resolve()),
        "hash": samples.fingerprint,
        "version": samples.version,
        "num": samples.num,
        "size": list(samples.size),
        "sampler": samples.meta,
    }


def _write(samples: ImageSet, figures: list[dict[str, Any]]) -> None:
    """metrics.json beside the samples."""
    path = _metrics_path(samples)
    document = {
        "format_version": FORMAT_VERSION,
        "samples": _samples_record(samples),
        "figures": _earlier_figures(samples, path, figures) + figures,
    }
    try:
        write_json(path, document)
    except OSError as error:
        raise SitError(f"cannot write {path}: {error.strerror}") from None


def _earlier_figures(
    samples: ImageSet, path: Path, figures: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Figures of these very samples that the file holds already and that are not measured anew."""

    def key(figure: dict[str, Any]) -> tuple[object, ...]:
        reference = figure["reference"] or {}
        return figure["metric"], reference.get("hash"), reference.get("num")

    try:
        document = json.loads(path.read_text())
        if document["samples"]["version"] != samples.version:
            return []
        new = {key(figure) for figure in figures}
        return [figure for figure in document["figures"] if key(figure) not in new]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _report(task: _Task, settings: EvaluateSettings, results: list[list[dict[str, Any]]]) -> Result:
    data: list[dict[str, Any]] = [
        {"samples": _samples_record(samples), "figures": figures}
        for samples, figures in zip(task.sets, results, strict=True)
    ]
    one = len(task.sets) == 1
    table = _table(task, results[0]) if one else _comparison(task, results)
    outs = [_metrics_path(samples) for samples in task.sets]
    summary = _summary(task, results[0])
    if not one:
        summary["written"] = ", ".join(map(str, outs))
    return Result(
        summary=summary,
        tables=[table],
        data=data[0] if one else {"sets": data},
        path=outs[0] if one else None,
        next=_next(task, settings) if one else "",
    )


def _table(task: _Task, figures: list[dict[str, Any]]) -> Table:
    rows = []
    for figure in figures:
        floor = "-" if figure["floor"] is None else f"{figure['floor']:.5g}"
        num = f"{figure['num_samples']:,}"
        reference = task.reference.short if task.reference is not None else "-"
        rows.append([figure["metric"], _value(figure), floor, num, reference])
    return Table(title="", header=["metric", "value", "floor", "N", "reference"], rows=rows)


def _comparison(task: _Task, results: list[list[dict[str, Any]]]) -> Table:
    """A set a row, a metric a column, the floors below."""
    names = [figure["metric"] for figure in results[0]]
    rows = [
        [str(samples.path), f"{samples.num:,}", *map(_value, figures)]
        for samples, figures in zip(task.sets, results, strict=True)
    ]
    floors = ["-" if f["floor"] is None else f"{f['floor']:.5g}" for f in results[0]]
    num = f"{len(task.reference.indices):,}" if task.reference is not None else "-"
    if any(floor != "-" for floor in floors):
        rows.append(["floor", num, *floors])
    return Table(title="", header=["samples", "N", *names], rows=rows)


def _value(figure: dict[str, Any]) -> str:
    """A figure with its interval, or with the spread over its subsets."""
    text = f"{figure['value']:.5g}"
    if figure["interval"] is not None:
        return f"{text} [{figure['interval']['low']:.5g}, {figure['interval']['high']:.5g}]"
    return text if figure["std"] is None else f"{text} ± {figure['std']:.2g}"


def _summary(task: _Task, figures: list[dict[str, Any]]) -> dict[str, str]:
    official = " (the official InceptionV3)" if task.layers["pool"].features.official else ""
    summary = {"features": ", ".join(task.tags()) + official}
    intervals = [f["interval"] for f in figures if f["interval"] is not None]
    if intervals:
        summary["[low, high]"] = (
            f"95%, from {intervals[0]['resamples']} bootstrap resamples of the samples"
        )
        without = [f["metric"].split("[")[0] for f in figures if f["interval"] is None]
        if without:
            summary["[low, high]"] += f"; {', '.join(without)}: none, images must not repeat there"
    if all(figure["floor"] is None for figure in figures):
        return summary | {"floor": "none: it takes two halves of the reference's images"}
    num = len(task.reference.indices)
    summary["floor"] = (
        f"the same metric between two random halves of the reference, {num // 2:,} and "
        f"{num - num // 2:,} images"
    )
    if any(METRICS[metric].frechet for metric in task.metrics):
        summary["floor"] += "; a Frechet distance of few images is large by their number alone"
    if {"isc", "prc", "dc"} & set(task.metrics):
        summary["floor"] += "; of IS, precision, recall, density and coverage it is the ceiling"
    return summary


def _next(task: _Task, settings: EvaluateSettings) -> str:
    (samples,) = task.sets
    if "invert" in samples.meta:
        return ""  # there are no more of the images it was made of
    if samples.meta.get("noise"):
        return ""  # nor of the noise it was drawn from
    drawn = {"checkpoint", "cfg_scale"} <= samples.meta.keys() and samples.meta.get(
        "mode"
    ) in OPTIONS
    if drawn and samples.num < FEW_SAMPLES:
        return _more_samples(samples.meta)
    others = [f"--{metric}" for metric in ("kid", "prc") if metric not in task.metrics]
    if not others or task.reference is None or task.reference.images is None:
        return ""
    words = ["sit", "evaluate", str(samples.path), *others]
    for name in ("reference", "reference_num", "features_weights"):
        if getattr(settings, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    if settings.features != "inception":
        words += ["--features", settings.features]
    return shlex.join(words)


def _more_samples(meta: dict[str, Any]) -> str:
    """The command that draws enough samples in the way these were drawn."""
    words = ["sit", "sample", str(meta["checkpoint"]), "--num", str(FEW_SAMPLES)]
    words.append(f"--{meta['mode']}")
    usual = {"cfg_channels": "all"} | OPTIONS[meta["mode"]]  # what need not be typed
    for option in dataclasses.fields(SampleSettings):
        value = meta.get(option.name)
        if value == usual.get(option.name):
            continue
        if option.name == "cfg_channels" and meta["cfg_scale"] == 1:
            continue
        if option.name in ("checkpoint", "num", "precision") or value in (None, option.default):
            continue
        words += [f"--{option.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _describe(images: ImageSet, num: int) -> str:
    what = "the source images of " if images.kind == "latent store" else ""
    return f"{what}{images.path} ({num:,} images, {_size(images)}, {images.preparation})"


def _size(images: ImageSet) -> str:
    return f"{images.size[1]}x{images.size[0]}"


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """What samples are compared with: images[indices], or an npz's statistics, or both."""

    path: Path
    images: ImageSet | None
    indices: np.ndarray
    statistics: StatisticsFile | None

    @property
    def text(self) -> str:
        if self.images is None:
            return f"{self.path} (statistics only)"
        return _describe(self.images, len(self.indices))

    @property
    def short(self) -> str:
        return f"{self.path.name} ({len(self.indices):,})" if self.images else self.path.name

    def record(self, has_floor: bool) -> dict[str, Any]:
        """Its part of a figure in metrics.json."""
        num, images = len(self.indices), self.images
        return {
            "path": str(self.path.resolve()),
            "kind": images.kind if images is not None else "statistics",
            "hash": images.fingerprint if images is not None else hash_file(self.path),
            "num": num or None,
            "num_floor": [num // 2, num - num // 2] if has_floor else None,
            "size": list(images.size) if images is not None else None,
            "preparation": images.preparation if images is not None else None,
        }


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is to be measured, all of it opened and checked; layers by METRICS' names for them."""

    metrics: tuple[str, ...]
    layers: dict[str, Layer]
    sets: list[ImageSet]
    reference: _Reference | None
    bootstrap: bool

    def given(self, name: str) -> Gaussian | None:
        """What the reference's file says of the layer called so."""
        statistics = self.reference and self.reference.statistics
        return statistics.gaussians.get(name) if statistics else None

    def tags(self) -> list[str]:
        """The extractors, each once."""
        return list(dict.fromkeys(layer.features.tag for layer in self.layers.values()))
