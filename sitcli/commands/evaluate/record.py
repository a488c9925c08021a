"""metrics.json: each figure with everything it depends on."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sitcli import __version__
from sitcli.commands.evaluate.job import Job, metrics_path
from sitcli.errors import SitError
from sitcli.events import Event, Progress
from sitcli.features.base import Features
from sitcli.features.collect import Count
from sitcli.images.sets import ImageSet
from sitcli.metrics.metric import Measured
from sitcli.metrics.subsamples import standard_error
from sitcli.metrics.table import METRICS
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.storage.files import write_json

FORMAT_VERSION = 1
NORMAL_95 = 1.959964  # standard deviations each way of a 95% interval


def interval_of(
    measured: Measured, settings: EvaluateSettings, count: Count
) -> Generator[Event, None, dict[str, Any] | None]:
    """A 95% interval; None if none was asked for or the figure has none.

    It is the figure plus and minus 1.96 of its standard deviations over independent draws of as
    many samples; the reference is held fixed.
    """
    if settings.bootstrap is None or (measured.parts is None and measured.error is None):
        return None
    computed = None
    if measured.parts is None:
        method, error = "formula", measured.error()
    else:
        method, computed = "halves and quarters", 0
        steps = standard_error(measured.parts(), number=settings.bootstrap, seed=settings.seed)
        while True:
            try:
                computed = next(steps)
            except StopIteration as end:
                error = end.value
                break
            text = f"{measured.name}: part {computed} for its interval"
            yield Progress(done=count.total, total=count.total, text=text)
    if error == 0:
        return None  # no part of so few samples differs from another: nothing is known
    half = NORMAL_95 * error
    low = max(measured.value - half, measured.limits[0])
    high = min(measured.value + half, measured.limits[1])
    return {"level": 0.95, "low": low, "high": high, "method": method, "parts": computed}


def figure_record(
    job: Job,
    samples: ImageSet,
    metric: str,
    measured: Measured,
    interval: dict[str, Any] | None,
) -> dict[str, Any]:
    """One entry of metrics.json: a figure and all that it depends on beside the samples.

    Raises SitError if the figure is not finite.
    """
    row, real = METRICS[metric], measured.real
    features = job.layers[row.layer].features
    label = features.label(measured.name)
    if not math.isfinite(measured.value):
        raise SitError(f"{label} of {samples.path} is not a finite number")
    return {
        "metric": label,
        "value": measured.value,
        "std": measured.spread,
        "interval": interval,
        "num_samples": samples.num,
        "floor": real.value if real and row.distance else None,
        "real": real and {"value": real.value, "numbers": list(real.numbers)},
        "recipe": measured.recipe,
        "features": features_record(features),
        "reference": job.reference and job.reference.record(job.sets.index(samples)),
        "sit_version": __version__,
    }


def features_record(features: Features) -> dict[str, Any]:
    """An extractor as metrics.json names it."""
    return {
        "name": features.name,
        "weights_sha256": features.hash or None,
        "official": features.official,
    }


def samples_record(samples: ImageSet) -> dict[str, Any]:
    """A sample set as metrics.json names it."""
    return {
        "path": str(samples.path.resolve()),
        "hash": samples.fingerprint,
        "version": samples.version,
        "num": samples.num,
        "size": list(samples.size),
        "sampler": samples.meta,
    }


def write_metrics(samples: ImageSet, figures: list[dict[str, Any]]) -> None:
    """Write metrics.json beside the samples, with the figures it held of the same samples.

    Raises SitError if it cannot be written.
    """
    path = metrics_path(samples)
    document = {
        "format_version": FORMAT_VERSION,
        "samples": samples_record(samples),
        "figures": _earlier_figures(samples, path, figures) + figures,
    }
    try:
        write_json(path, document)
    except OSError as error:
        raise SitError(f"cannot write {path}: {error.strerror}") from None


def _earlier_figures(
    samples: ImageSet, path: Path, figures: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The figures in the file that are of the same samples and were not measured again."""

    def key(figure: dict[str, Any]) -> tuple[object, ...]:
        reference = figure["reference"] or {}
        compared = (reference.get("classes") or {}).get("compared") == "same"
        return figure["metric"], reference.get("hash"), reference.get("num"), compared

    try:
        document = json.loads(path.read_text())
        if document["samples"]["version"] != samples.version:
            return []
        new = {key(figure) for figure in figures}
        return [figure for figure in document["figures"] if key(figure) not in new]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
