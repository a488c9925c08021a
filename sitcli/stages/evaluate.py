"""``sit evaluate``: how far the samples are from real images, and how far real images are apart.

Every figure comes with its floor: the same metric between two random halves of the reference.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli import __version__
from sitcli.errors import SitError, UsageError
from sitcli.events import Event, Note, Progress, Result, Stage, Table, Warn
from sitcli.io.extraction import (
    Collected,
    Count,
    Statistics,
    collect,
    keep_statistics,
    kept_path,
    load_kept_statistics,
    most_kept,
)
from sitcli.io.features import (
    KID_SUBSETS,
    NEIGHBOURS,
    Extractor,
    Features,
    Moments,
    StatisticsFile,
    choose_features,
    frechet_distance,
    gaussian_of,
    inception_score,
    kernel_distance,
    kid_subset_size,
    load_extractor,
    load_statistics,
    precision_recall,
)
from sitcli.io.files import hash_file, write_json
from sitcli.io.find import newest_samples
from sitcli.io.imagesets import ImageSet, joined, kind_of, open_images
from sitcli.io.launch import generator, quiet_libraries, resolve_device
from sitcli.io.rows import check_writable
from sitcli.settings import EvaluateSettings, SampleSettings
from sitcli.stages.likelihood import refuse_options
from sitcli.stages.sample import OPTIONS

FORMAT_VERSION = 1
FEW_SAMPLES = 10_000


def evaluate(settings: EvaluateSettings) -> Stage:
    """Compare samples with a reference and write metrics.json beside the samples.

    Raises UsageError for metrics the features cannot give, SitError for what cannot be read or
    compared.
    """
    task = _resolve(settings)
    device = resolve_device(settings.device)
    yield Note(f"samples: {_describe(task.samples, task.samples.num)}")
    if task.reference is not None:
        yield Note(f"reference: {task.reference.text}")
    for text in _warnings(task):
        yield Warn(text)

    quiet_libraries()
    extractor = load_extractor(task.features, device)
    width = _width(task, extractor)
    _check_sizes(task, width)
    known = yield from _known_statistics(task, settings.seed)
    use_reference = _needs_reference_features(task, known)
    num_reference = len(task.reference.indices) if use_reference else 0
    count = Count(total=num_reference + task.samples.num)
    shared = dict(
        features=task.features,
        extractor=extractor,
        width=width,
        moments="fid" in task.metrics,
        batch_size=settings.batch_size,
        count=count,
    )
    real = None
    if use_reference:
        images, indices = task.reference.images, task.reference.indices
        halves = _halves(len(indices), settings.seed)
        real = yield from collect(images, indices, halves, **shared)
        if "fid" in task.metrics and known is None:
            known = yield from _new_statistics(task, real, settings.seed)
    num = task.samples.num
    fake = yield from collect(task.samples, np.arange(num), np.zeros(num, np.uint8), **shared)

    evidence = _Evidence(task, extractor, fake, real, known, settings.seed)
    figures = []
    for metric in task.metrics:
        yield Progress(done=count.total, total=count.total, text=f"computing {metric}")
        figures += METRICS[metric](evidence)
    return _report(task, settings, figures)


def plan(settings: EvaluateSettings) -> Result:
    """What `evaluate` would do; opens what it would read, writes nothing."""
    task = _resolve(settings)
    resolve_device(settings.device)
    reference = task.reference
    num_reference = len(reference.indices) if reference is not None else 0
    num = task.samples.num
    summary = {
        "metrics": ", ".join(task.metrics),
        "samples": _describe(task.samples, num),
        "reference": reference.text if reference is not None else "none",
        "features": task.features.tag,
        "extractor": f"{num + num_reference:,} images at most; kept features are used again",
        "would write": f"{task.out}, and features in {task.samples.stats_folder}",
    }
    data = {
        "dry_run": True,
        "metrics": list(task.metrics),
        "samples": {"path": str(task.samples.path), "num": num},
        "reference": reference and {"path": str(reference.path), "num": num_reference},
        "features": {"name": task.features.name, "weights_sha256": task.features.hash or None},
        "out": str(task.out),
    }
    return Result(summary=summary, data=data)


def _resolve(settings: EvaluateSettings) -> _Task:
    refuse_options(settings)
    metrics = tuple(m for m in METRICS if getattr(settings, m)) or ("fid",)
    path = settings.samples or newest_samples()
    features = choose_features(settings.features, settings.features_weights)
    if "isc" in metrics and features.name != "inception":
        raise UsageError(
            f"--isc needs class probabilities, which --features {settings.features} does not give",
            "leave out --isc, or use --features inception",
        )
    if kind_of(path) == "latent store":
        raise UsageError(f"{path} is a latent store, not samples", f"--reference {path}")
    samples = open_images(path)
    if samples.num < 2:
        raise SitError(f"{path} holds {samples.num} image, and at least 2 are needed")
    reference = _resolve_reference(settings, samples, metrics)
    out = _metrics_path(samples)
    check_writable(out)
    return _Task(metrics=metrics, features=features, samples=samples, reference=reference, out=out)


def _resolve_reference(
    settings: EvaluateSettings, samples: ImageSet, metrics: tuple[str, ...]
) -> _Reference | None:
    paths = [settings.reference] if settings.reference else _default_reference(samples)
    if not paths:
        if metrics == ("isc",):  # the one metric that compares with nothing
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
        lacking = [metric for metric in metrics if metric != "fid"]
        if lacking or settings.reference_num is not None:
            option = f"--{lacking[0]}" if lacking else "--reference-num"
            raise UsageError(
                f"{path} holds statistics only (mu, sigma): {option} needs its images (arr_0)",
                "give a reference with images, or --fid alone",
            )
    elif num < 2:
        raise SitError(f"the reference {path} holds {num} image, and at least 2 are needed")
    wanted = settings.reference_num or num
    if wanted > num:
        raise UsageError(f"--reference-num {wanted}: the reference {path} has {num:,} images")
    indices = np.arange(wanted) * num // max(1, wanted)
    return _Reference(path=path, images=images, indices=indices, statistics=statistics)


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
    features, reference, samples = task.features, task.reference, task.samples
    warnings = []
    if not features.official:
        label = features.label("FID")
        warnings.append(
            f"{label} is not FID: compare it with {label} of other samples against this "
            "reference, never with a published figure"
        )
    if samples.num < FEW_SAMPLES:
        warnings.append(
            f"{samples.num:,} samples are fewer than {FEW_SAMPLES:,}: the figures are biased and "
            "cannot be compared with published ones (of 50,000 samples) nor with those of "
            "another number of samples"
        )
    if reference is None:
        return [*warnings, "there is no reference, so no floor can be computed"]
    if reference.images is None:
        warnings.append(
            f"{reference.path} holds statistics only, no images: no floor can be computed"
        )
    elif reference.images.size != samples.size and features.name == "inception":
        warnings.append(
            f"the samples are {_size(samples)} and the reference {_size(reference.images)}: "
            "InceptionV3 resizes both, and the difference in sharpness counts"
        )
    unnamed = reference.statistics and "features" not in reference.statistics.more
    if unnamed and not features.official:
        warnings.append(
            f"{reference.path} does not tell what made its statistics; a figure means something "
            f"only if it was {features.tag}"
        )
    return warnings


def _width(task: _Task, extractor: Extractor) -> int:
    """Number of features of an image; UsageError if samples and reference differ in it."""
    sizes = {task.samples.size}
    if task.reference is not None and task.reference.images is not None:
        sizes.add(task.reference.images.size)
    if len(sizes) > 1 and task.features.name != "inception":
        raise UsageError(
            f"the samples are {_size(task.samples)} and the reference "
            f"{_size(task.reference.images)}: {task.features.tag} compares images of one size",
            "give a --reference of the samples' size; a folder is cropped to it",
        )
    height, width = task.samples.size
    trial = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    return extractor.extract(trial).shape[1]


def _check_sizes(task: _Task, width: int) -> None:
    """Raise unless the reference's statistics fit and all that must be kept can be."""
    reference = task.reference
    if reference is not None and reference.statistics is not None and "fid" in task.metrics:
        given = reference.statistics
        made_with = str(given.more.get("features", task.features.tag))
        if made_with != task.features.tag or len(given.gaussian.mean) != width:
            raise SitError(
                f"{reference.path} holds statistics of {len(given.gaussian.mean)} features"
                f"{f' of {made_with}' if 'features' in given.more else ''}; "
                f"{task.features.tag} gives {width}",
                "give a reference made with the same extractor, or one with images",
            )
    numbers = {"samples": task.samples.num}
    if reference is not None:
        numbers["reference"] = len(reference.indices)
    for metric in task.metrics:
        for side, num in numbers.items():
            if metric != "fid" and num > most_kept(width):
                raise UsageError(
                    f"--{metric} takes at most {most_kept(width):,} images a side, and the {side} "
                    f"has {num:,}",
                    "--reference-num 50000" if side == "reference" else "use fewer samples",
                )
            if metric == "prc" and num <= NEIGHBOURS:
                raise SitError(
                    f"--prc needs more than {NEIGHBOURS} images a side: {side} has {num}"
                )


def _needs_reference_features(task: _Task, known: Statistics | None) -> bool:
    if task.reference is None or task.reference.images is None:
        return False
    return task.metrics != ("fid",) or known is None


def _halves(num: int, seed: int) -> np.ndarray:
    """(num,) of 0 and 1: two random halves of the reference, a function of the seed."""
    parts = np.zeros(num, np.uint8)
    order = torch.randperm(num, generator=generator(seed, "halves")).numpy()
    parts[order[num // 2 :]] = 1
    return parts


def _known_statistics(task: _Task, seed: int) -> Generator[Event, None, Statistics | None]:
    """Statistics of the reference's images that an earlier evaluation kept."""
    if "fid" not in task.metrics or task.reference is None or task.reference.images is None:
        return None
    path = _statistics_path(task, seed)
    if not path.exists():
        return None
    try:
        statistics = load_kept_statistics(path)
    except SitError as error:
        yield Warn(f"made again: {error.message}")
        return None
    yield Note(f"statistics of the reference: {path}")
    return statistics


def _new_statistics(task: _Task, real: Collected, seed: int) -> Generator[Event, None, Statistics]:
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
        path = _statistics_path(task, seed)
        keep_statistics(path, statistics, features=task.features, seed=seed)
    except SitError as error:
        yield Warn(f"statistics are not kept for another time: {error.message}")
    return statistics


def _statistics_path(task: _Task, seed: int) -> Path:
    images, indices = task.reference.images, task.reference.indices
    return kept_path(images, indices, task.features, f"-seed{seed}.npz")


def _measure_fid(e: _Evidence) -> list[dict[str, Any]]:
    given = e.task.reference.statistics
    target = given.gaussian if given is not None else e.known.gaussian
    value = frechet_distance(gaussian_of(e.fake.moments[0]), target)
    recipe = {"statistics": "the file's mu and sigma" if given is not None else "of its images"}
    recipe["num_reference"] = target.num
    floor = e.known.floor if e.known is not None else None
    return [_figure(e.task, "FID", value, floor, recipe)]


def _measure_isc(e: _Evidence) -> list[dict[str, Any]]:
    def score(features: np.ndarray, *, ordered: bool) -> tuple[float, float, dict[str, Any]]:
        logits = e.extractor.logits(torch.from_numpy(np.array(features)))
        return inception_score(logits, seed=e.seed, ordered=ordered)

    value, spread, recipe = score(e.fake.features, ordered=e.task.samples.ordered)
    floor = None
    if e.real is not None and len(e.real.parts) >= 4:
        floor = float(np.mean([score(half, ordered=False)[0] for half in e.real.halves()]))
    return [_figure(e.task, "IS", value, floor, recipe, spread=spread)]


def _measure_kid(e: _Evidence) -> list[dict[str, Any]]:
    value, spread = kernel_distance(e.fake.features, e.real.features, seed=e.seed)
    first, second = e.real.halves()
    floor = kernel_distance(first, second, seed=e.seed)[0] if len(first) >= 2 else None
    size = kid_subset_size(len(e.fake.features), len(e.real.features))
    recipe = {"kernel": "polynomial", "subsets": KID_SUBSETS, "subset_size": size}
    return [_figure(e.task, "KID", value, floor, recipe, spread=spread)]


def _measure_prc(e: _Evidence) -> list[dict[str, Any]]:
    values = precision_recall(e.fake.features, e.real.features)
    first, second = e.real.halves()
    floors = precision_recall(first, second) if len(first) > NEIGHBOURS else (None, None)
    recipe = {"neighbours": NEIGHBOURS, "distances": "float32"}
    return [
        _figure(e.task, name, value, floor, recipe)
        for name, value, floor in zip(("precision", "recall"), values, floors, strict=True)
    ]


METRICS: dict[str, Callable[[_Evidence], list[dict[str, Any]]]] = {
    "fid": _measure_fid,
    "isc": _measure_isc,
    "kid": _measure_kid,
    "prc": _measure_prc,
}


def _figure(
    task: _Task,
    name: str,
    value: float,
    floor: float | None,
    recipe: dict[str, Any],
    *,
    spread: float | None = None,
) -> dict[str, Any]:
    """One entry of metrics.json: a figure and all it depends on beside the samples."""
    label = task.features.label(name)
    if not math.isfinite(value):
        raise SitError(f"{label} of these images is not a finite number")
    features, reference = task.features, task.reference
    return {
        "metric": label,
        "value": value,
        "std": spread,
        "num_samples": task.samples.num,
        "floor": floor,
        "recipe": recipe,
        "features": {
            "name": features.name,
            "weights_sha256": features.hash or None,
            "official": features.official,
        },
        "reference": reference and reference.record(floor is not None),
        "sit_version": __version__,
    }


def _report(task: _Task, settings: EvaluateSettings, figures: list[dict[str, Any]]) -> Result:
    samples = {
        "path": str(task.samples.path.resolve()),
        "hash": task.samples.fingerprint,
        "version": task.samples.version,
        "num": task.samples.num,
        "size": list(task.samples.size),
        "sampler": task.samples.meta,
    }
    document = {
        "format_version": FORMAT_VERSION,
        "samples": samples,
        "figures": _earlier_figures(task, figures) + figures,
    }
    try:
        write_json(task.out, document)
    except OSError as error:
        raise SitError(f"cannot write {task.out}: {error.strerror}") from None
    return Result(
        summary=_summary(task, figures),
        tables=[_table(task, figures)],
        data={"samples": samples, "figures": figures},
        path=task.out,
        next=_next(task, settings),
    )


def _earlier_figures(task: _Task, figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures of these very samples that the file holds already and that are not measured anew."""

    def key(figure: dict[str, Any]) -> tuple[object, ...]:
        reference = figure["reference"] or {}
        return figure["metric"], reference.get("hash"), reference.get("num")

    try:
        document = json.loads(task.out.read_text())
        if document["samples"]["version"] != task.samples.version:
            return []
        new = {key(figure) for figure in figures}
        return [figure for figure in document["figures"] if key(figure) not in new]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _table(task: _Task, figures: list[dict[str, Any]]) -> Table:
    rows = []
    for figure in figures:
        spread = "" if figure["std"] is None else f" ± {figure['std']:.2g}"
        floor = "-" if figure["floor"] is None else f"{figure['floor']:.5g}"
        num = f"{figure['num_samples']:,}"
        reference = task.reference.short if task.reference is not None else "-"
        rows.append([figure["metric"], f"{figure['value']:.5g}{spread}", floor, num, reference])
    return Table(title="", header=["metric", "value", "floor", "N", "reference"], rows=rows)


def _summary(task: _Task, figures: list[dict[str, Any]]) -> dict[str, str]:
    official = " (the official InceptionV3)" if task.features.official else ""
    summary = {"features": task.features.tag + official}
    if all(figure["floor"] is None for figure in figures):
        return summary | {"floor": "none: it takes two halves of the reference's images"}
    num = len(task.reference.indices)
    summary["floor"] = (
        f"the same metric between two random halves of the reference, {num // 2:,} and "
        f"{num - num // 2:,} images"
    )
    if "fid" in task.metrics:
        summary["floor"] += "; a Frechet distance of few images is large by their number alone"
    if {"isc", "prc"} & set(task.metrics):
        summary["floor"] += "; of IS, precision and recall it is the ceiling"
    return summary


def _next(task: _Task, settings: EvaluateSettings) -> str:
    if "invert" in task.samples.meta:
        return ""  # there are no more of the images it was made of
    if task.samples.kind == "sample set" and task.samples.num < FEW_SAMPLES:
        return _more_samples(task.samples.meta)
    others = [f"--{metric}" for metric in ("kid", "prc") if metric not in task.metrics]
    if not others or task.reference is None or task.reference.images is None:
        return ""
    words = ["sit", "evaluate", str(task.samples.path), *others]
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
    """What is to be measured, all of it opened and checked."""

    metrics: tuple[str, ...]
    features: Features
    samples: ImageSet
    reference: _Reference | None
    out: Path


@dataclass(frozen=True)
class _Evidence:
    """All that a metric is computed from; what its metric does not need is None."""

    task: _Task
    extractor: Extractor
    fake: Collected
    real: Collected | None
    known: Statistics | None
    seed: int
