"""The report of `sit evaluate`: tables, warnings, and the next command."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from sitcli.commands.evaluate.job import Job, metrics_path
from sitcli.commands.evaluate.record import samples_record
from sitcli.commands.evaluate.sides import Classes, size_of
from sitcli.commands.sample.options import OPTIONS
from sitcli.events import Result, Table
from sitcli.metrics.table import METRICS
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.sample import SampleSettings

FEW_SAMPLES = 10_000
REAL = "real images"


def warnings_for(job: Job) -> list[str]:
    """Reasons for which the job's figures are not what they may seem, for people."""
    features, reference = job.layers["pool"].features, job.reference
    warnings = []
    fewest = min(samples.num for samples in job.sets)
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
    if len({samples.num for samples in job.sets}) > 1:
        warnings.append("the sets differ in number of images, which alone moves most figures")
    if reference is None:
        return [*warnings, "there is no reference, so what real images get is not known"]
    for samples, classes in zip(job.sets, reference.classes, strict=True):
        if isinstance(classes, Classes) and not classes.whole:
            warnings.append(classes.sentence(samples.path) + _left_out(job, classes))
    size = job.sets[0].size
    if reference.images is None:
        warnings.append(
            f"{reference.path} holds statistics only, no images: what real images get is not known"
        )
    elif reference.images.size != size and features.resizes:
        warnings.append(
            f"the samples are {size_of(job.sets[0])} and the reference "
            f"{size_of(reference.images)}: the extractor resizes both, and their difference in "
            "sharpness affects the figures"
        )
    unnamed = reference.statistics and "features" not in reference.statistics.more
    if unnamed and not features.official:
        warnings.append(
            f"{reference.path} does not name the extractor of its statistics: the figures are "
            f"valid only if it was {features.tag}"
        )
    return warnings


def _left_out(job: Job, classes: Classes) -> str:
    if job.reference.same_classes:
        return "; they are compared with these alone"
    if len(classes.covered) == classes.total:
        return ""
    return "; they are compared with all: --reference-classes same compares them with these alone"


def report_of(job: Job, settings: EvaluateSettings, results: list[list[dict[str, Any]]]) -> Result:
    """The result of an evaluation; results: the figures of each set, as metrics.json keeps them."""
    data: list[dict[str, Any]] = [
        {"samples": samples_record(samples), "figures": figures}
        for samples, figures in zip(job.sets, results, strict=True)
    ]
    one = len(job.sets) == 1
    table = _table(job, results[0]) if one else _comparison(job, results)
    outs = [metrics_path(samples) for samples in job.sets]
    summary = _summary(job, results[0])
    if not one:
        summary["written"] = ", ".join(map(str, outs))
    return Result(
        summary=summary,
        tables=[table],
        data=data[0] if one else {"sets": data},
        path=outs[0] if one else None,
        next=_next(job, settings) if one else "",
    )


def _table(job: Job, figures: list[dict[str, Any]]) -> Table:
    rows = []
    for figure in figures:
        num = f"{figure['num_samples']:,}"
        reference = job.reference.short if job.reference is not None else "-"
        rows.append([figure["metric"], _value(figure), real_text(figure), num, reference])
    return Table(title="", header=["metric", "value", REAL, "N", "reference"], rows=rows)


def real_text(figure: dict[str, Any]) -> str:
    """What real images get in place of the samples, or a dash."""
    return "-" if figure["real"] is None else f"{figure['real']['value']:.5g}"


def _comparison(job: Job, results: list[list[dict[str, Any]]]) -> Table:
    """One row per set and one column per metric; below, what as many real images get."""
    names = [figure["metric"] for figure in results[0]]
    rows = [
        [str(samples.path), f"{samples.num:,}", *map(_value, figures)]
        for samples, figures in zip(job.sets, results, strict=True)
    ]
    real = {samples.num: figures for samples, figures in zip(job.sets, results, strict=True)}
    for num, figures in real.items():
        if any(figure["real"] for figure in figures):
            rows.append([REAL, f"{num:,}", *map(real_text, figures)])
    return Table(title="", header=["samples", "N", *names], rows=rows)


def _value(figure: dict[str, Any]) -> str:
    """A figure with its interval, or with the spread over its subsets."""
    text = f"{figure['value']:.5g}"
    if figure["interval"] is not None:
        return f"{text} [{figure['interval']['low']:.5g}, {figure['interval']['high']:.5g}]"
    return text if figure["std"] is None else f"{text} ± {figure['std']:.2g}"


def _summary(job: Job, figures: list[dict[str, Any]]) -> dict[str, str]:
    official = " (the official InceptionV3)" if job.layers["pool"].features.official else ""
    summary = {"features": ", ".join(job.tags()) + official}
    intervals = [f["interval"] for f in figures if f["interval"] is not None]
    if intervals:
        parts = max((i["parts"] for i in intervals if i["parts"]), default=0)
        summary["[low, high]"] = "95%, of independent draws of as many samples"
        if parts:
            summary["[low, high]"] += f"; from {parts} halves and quarters of the samples"
        without = [f["metric"].split("[")[0] for f in figures if f["interval"] is None]
        if without:
            summary["[low, high]"] += f"; {', '.join(without)}: no interval is known"
    return summary | {REAL: _about_real(job, figures)}


def _about_real(job: Job, figures: list[dict[str, Any]]) -> str:
    """What the column of real images holds, or why it is empty."""
    num = figures[0]["num_samples"]
    known = [figure["real"]["numbers"] for figure in figures if figure["real"] is not None]
    if job.reference is None or job.reference.images is None:
        return "none: there are no images of the reference"
    if not known:
        have = len(job.reference.indices)
        return f"none: it takes {2 * num:,} images of the reference, and there are {have:,}"
    others = max(known, key=len)[1:]
    text = f"{num:,} images of the reference in place of the samples"
    if others:
        text += f", compared with its other {others[0]:,}"
    if any(METRICS[metric].frechet for metric in job.metrics):
        text += "; a Frechet distance of few images is large by their number alone"
    return text


def _next(job: Job, settings: EvaluateSettings) -> str:
    (samples,) = job.sets
    if "invert" in samples.meta:
        return ""  # there may be no more images to invert
    if samples.meta.get("noise"):
        return ""  # the file of --noise has no more rows
    drawn = {"checkpoint", "cfg_scale"} <= samples.meta.keys() and samples.meta.get(
        "mode"
    ) in OPTIONS
    if drawn and samples.num < FEW_SAMPLES:
        return _more_samples(samples.meta)
    others = [f"--{m}" for m in METRICS if METRICS[m].suggested and m not in job.metrics]
    if not others or job.reference is None or job.reference.images is None:
        return ""
    words = ["sit", "evaluate", str(samples.path), *others]
    for name in ("reference", "reference_num", "features_weights"):
        if getattr(settings, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    if settings.reference_classes != EvaluateSettings.reference_classes:
        words += ["--reference-classes", settings.reference_classes]
    if settings.features != EvaluateSettings.features:
        words += ["--features", settings.features]
    return shlex.join(words)


def _more_samples(meta: dict[str, Any]) -> str:
    """The command that draws enough samples in the way these were drawn."""
    words = ["sit", "sample", str(meta["checkpoint"]), "--num", str(FEW_SAMPLES)]
    words.append(f"--{meta['mode']}")
    usual = {"cfg_channels": "all"} | OPTIONS[meta["mode"]]  # defaults need not be typed
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
