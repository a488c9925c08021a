"""A sample set described, verified and drawn."""

from __future__ import annotations

import json
from shlex import quote

import numpy as np

from sitcli.commands.inspect.checks import (
    Problems,
    check_flags,
    check_labels,
    describe_classes,
    in_pieces,
    items_to_preview,
)
from sitcli.commands.inspect.run import bytes_below
from sitcli.commands.inspect.store import counts_text
from sitcli.errors import UsageError
from sitcli.events import Progress, Result, Warn
from sitcli.samples.sample_set import FILE as SAMPLES_FILE
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.tools import InspectSettings
from sitcli.storage import rows
from sitcli.text import first_line, format_bytes

OPTIONAL_DATASETS = ("latents", "noise")  # what a sample set may hold beside the images


def describe_samples(samples: SampleSet) -> Result:
    """The images, the sampler's settings and the size of a sample set."""
    attrs, meta = samples.rows.attrs, samples.meta
    done = int(samples.done.sum())
    pictures, shape = "latents only", None
    if samples.images is not None:
        shape = list(samples.images.shape[1:])
        pictures = f"{shape[1]} x {shape[0]} pixels"
    names = list(meta.get("class_names") or [])
    counts = counts_text(samples.labels[samples.done], len(names))
    size = bytes_below(samples.directory if _owns_folder(samples) else samples.path)
    kept = "".join(f", {name} kept" for name in OPTIONAL_DATASETS if name in samples.rows.names)
    summary = {
        "kind": f"sample set, format {attrs['format_version']}, by sit {attrs['sit_version']}",
        "complete": "yes" if samples.complete else "no",
        "images": (f"{done}" if samples.complete else f"{done} of {samples.num} drawn")
        + f", {pictures}{kept}",
        "classes": describe_classes(names, counts)
        if names or not samples.labels.any()
        else f"numbers up to {samples.labels.max()}, without names",
    }
    # The short values that the sampler recorded, one per line.
    for name, value in meta.items():
        if isinstance(value, (str, int, float)) and value != "":
            summary.setdefault(name.replace("_", " "), str(value))
    summary["size"] = format_bytes(size)
    data = {
        "kind": "sample set",
        "path": str(samples.path),
        **{name: attrs[name] for name in ("format_version", "sit_version", "complete")},
        "num": samples.num,
        "num_done": done,
        "image_shape": shape,
        **{name: name in samples.rows.names for name in OPTIONAL_DATASETS},
        "class_counts": counts.tolist(),
        "meta": meta,
        "bytes": size,
    }
    target = samples.directory if _owns_folder(samples) else samples.path
    following = f"sit evaluate {quote(str(target))}" if samples.images is not None else ""
    if not samples.complete:
        following = "the `sit sample` command that began it"
    return Result(summary=summary, data=data, next=following)


def verify_samples(samples: SampleSet) -> Problems:
    """Read a sample set; returns the problems that were found, and warns of blank images."""
    written = samples.rows.written
    problems = check_flags(written, complete=samples.complete)
    blank = 0
    for start, stop in in_pieces(samples.images) if samples.images is not None else ():
        one_colour = np.ptp(samples.images[start:stop], axis=(1, 2)).max(axis=-1) == 0
        blank += int((one_colour & (written[start:stop] == rows.DONE)).sum())
        yield Progress(done=stop, total=samples.num, unit="images")
    if blank:
        yield Warn(f"{blank} images are of one colour")
    for name in sorted(set(OPTIONAL_DATASETS) & set(samples.rows.names)):
        if not np.isfinite(samples.rows.array(name)[samples.done]).all():
            problems.append(f"some {name} {'is' if name == 'noise' else 'are'} not finite")
    num_classes = len(samples.meta.get("class_names") or []) or 1
    problems += check_labels(samples.labels, num_classes)
    if samples.complete:
        meta = samples.beside("meta.json")
        try:
            if json.loads(meta.read_text()) != samples.meta:
                problems.append(f"{meta.name} differs from what samples.h5 says")
        except FileNotFoundError:
            problems.append(f"{meta.name} is missing")
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{meta.name} cannot be read: {first_line(error)}")
    return problems


def draw_samples(
    samples: SampleSet, settings: InspectSettings
) -> tuple[np.ndarray, int, list[str]]:
    """Images (N, H, W, 3), columns and row labels of the preview."""
    if samples.images is None:
        raise UsageError(f"{samples.path} holds latents only, no pictures", "remove --preview")
    done = np.flatnonzero(samples.done)
    names = list(samples.meta.get("class_names") or [])
    chosen, columns, labels = items_to_preview(samples.labels[done], names)
    return np.array(samples.images[done[chosen]]), columns, labels


def _owns_folder(samples: SampleSet) -> bool:
    return samples.path.name == SAMPLES_FILE
