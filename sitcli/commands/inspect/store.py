"""A latent store described, verified and drawn."""

from __future__ import annotations

from shlex import quote
from typing import Any

import numpy as np

from sitcli.autoencoders.base import decode_latents
from sitcli.autoencoders.load import from_spec
from sitcli.commands.inspect.checks import (
    Problems,
    check_arrays,
    check_flags,
    check_labels,
    describe_classes,
    items_to_preview,
    listed,
)
from sitcli.events import Progress, Result
from sitcli.images.labels import LABELLINGS
from sitcli.latents.layout import encode_command
from sitcli.latents.readback import ReadBack
from sitcli.latents.store import LatentStore
from sitcli.machine.devices import resolve_device, resolve_precision
from sitcli.settings.tools import InspectSettings
from sitcli.text import format_bytes, format_shape


def describe_store(store: LatentStore) -> Result:
    """The images, classes, latents, autoencoder and size of a store."""
    attrs, spec = store.attrs, store.autoencoder
    num_rows, broken = store.rows.num_rows, store.broken()
    missing = store.num_missing()
    counts = counts_text(store.labels, store.num_classes)
    size = store.path.stat().st_size
    parts = "mean and std" if store.kind == "moments" else "deterministic"
    statistics = f"mean {listed(store.mean, '.3g')}, std {listed(store.std, '.3g')}"
    labels_from = attrs.get("labels_from")
    by_file = f", by {labels_from}" if labels_from not in (None, *LABELLINGS) else ""
    summary = {
        "kind": f"latent store, format {attrs['format_version']}, by sit {attrs['sit_version']}",
        "complete": "yes" if store.complete else "no",
        "images": _images(store, missing, broken),
        "classes": describe_classes(store.class_names, counts) + by_file,
        "latents": f"{format_shape(store.latent_shape)} float16, {parts}",
        "scaled by": f"{_scaling(store)}: "
        + (statistics if store.complete else "statistics follow when it is complete"),
        "autoencoder": f"{spec['name']} ({spec['class']}, {_hash(spec)})",
        "pictures": f"{store.image_size} x {store.image_size} pixels, crop {store.crop}",
        "source": f"{store.source} ({attrs['source_fingerprint'][:12]})",
        "encoded in": f"{attrs['precision']}, batches of {attrs['batch_size']}",
        "size": format_bytes(size),
    }
    grown = attrs.get("grown", [])
    if grown:
        summary["grown"] = f"from {' and '.join(str(r['rows']) for r in grown)} images"
    if "imported" in attrs:
        del summary["encoded in"]
        summary["imported"] = attrs["imported"]["layout"]
    if store.complete:
        summary["checksum"] = attrs["checksum"]
    data = {
        "kind": "latent store",
        "path": str(store.path),
        **{name: attrs[name] for name in ("format_version", "sit_version", "complete")},
        "num_items": store.num_items,
        "num_rows": num_rows,
        "num_missing": missing,
        "broken": [{"name": name, "reason": reason} for name, reason in broken],
        "num_classes": store.num_classes,
        "class_names": store.class_names,
        "class_counts": counts.tolist(),
        "labels_from": labels_from,
        "latent_shape": list(store.latent_shape),
        "latent_kind": store.kind,
        **{name: attrs[name] for name in ("flips", "image_size", "crop", "mean", "std")},
        **store.scaling.facts(spec),
        **{name: attrs[name] for name in ("normalize", "imported") if name in attrs},
        "autoencoder": spec,
        **{name: attrs[name] for name in ("source", "source_fingerprint", "fingerprint")},
        **{name: attrs[name] for name in ("batch_size", "precision", "checksum")},
        "grown": grown,
        "bytes": size,
    }
    following = f"sit train --latents {quote(str(store.path))}"
    if not store.complete:
        following = encode_command(attrs, store.path)
    return Result(summary=summary, data=data, next=following)


def _images(store: LatentStore, missing: int, broken: list[tuple[str, str]]) -> str:
    """How many images there are, and which are broken."""
    of = f" of {store.rows.num_rows} encoded" if missing else ""
    images = f"{store.num_items}{of}" + (", and their mirror images" if store.has_flips else "")
    names = [name for name, _ in broken]
    return images + (f"; {len(broken)} broken: {listed(names)}" if broken else "")


def _hash(spec: dict[str, Any]) -> str:
    return "weights not known" if spec["hash"] is None else spec["hash"][:12]


def _scaling(store: LatentStore) -> str:
    """The factor, or each channel's, and the shift unless it is 0."""
    factor, shift = (
        listed(np.ravel(v), ".5g") for v in (store.scaling.factor, store.scaling.shift)
    )
    return f"{factor}, after a shift by {shift}" if np.any(store.scaling.shift) else factor


def counts_text(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes,) images of each class; labels outside the classes do not count."""
    most = num_classes or 1
    return np.bincount(labels[(labels >= 0) & (labels < most)], minlength=num_classes)


def verify_store(store: LatentStore) -> Problems:
    """Read a store back and compare its checksums; returns the problems that were found."""
    problems = check_flags(store.rows.written, complete=store.complete)
    reading = ReadBack(store)
    for done in reading:
        yield Progress(done=done, total=store.rows.num_rows)
    if reading.damaged:
        damaged = store.rows.texts("paths", sorted(reading.damaged))
        problems.append(f"{len(damaged)} images have other latents than were written: ")
        problems[-1] += listed(damaged)
    if not np.isfinite([reading.mean, reading.std]).all():
        problems.append("some latents are not finite")
    problems += check_labels(store.labels, store.num_classes)
    problems += check_arrays(store.autoencoder, store.autoencoder_arrays)
    if store.complete and reading.checksum != store.attrs["checksum"]:
        problems.append("the latents or labels do not have the checksum they were completed with")
    return problems


def draw_store(store: LatentStore, settings: InspectSettings) -> tuple[np.ndarray, int, list[str]]:
    """Decoded images (N, H, W, 3), columns and row labels of the preview."""
    chosen, columns, labels = items_to_preview(store.labels, store.class_names)
    device = resolve_device(settings.device)
    autoencoder = from_spec(
        store.autoencoder,
        store.autoencoder_arrays,
        override=settings.vae,
        device=device,
        dtype=resolve_precision("auto", device),
    )
    images = decode_latents(autoencoder, store.batch(chosen), store.scaling)
    return images.numpy(), columns, labels
