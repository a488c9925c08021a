"""`sit encode-latents` before it writes: settings are resolved, source and store are looked at."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sitcli import names
from sitcli.autoencoders.base import Autoencoder
from sitcli.autoencoders.load import EMBEDDED, load_autoencoder
from sitcli.commands.encode.grow import begun_growing, growing_path
from sitcli.errors import SitError, UsageError
from sitcli.features.aligners import TIMM
from sitcli.images.shards import is_there
from sitcli.images.source import FIRST_LISTING, LISTING, Source, open_source
from sitcli.images.webdataset import is_shard
from sitcli.latents.layout import encode_command, open_rows
from sitcli.latents.scaling import Scaling
from sitcli.latents.store import LatentStore
from sitcli.machine.devices import resolve_precision
from sitcli.machine.world import device_name
from sitcli.settings.encode import EncodeSettings
from sitcli.storage.rows import Rows

IMAGE_SIZE, EMBEDDED_IMAGE_SIZE = 256, 32


def resolve(settings: EncodeSettings) -> EncodeSettings:
    """The settings with absolute paths, and with the defaults filled in that depend on others.

    Raises UsageError for options that have no effect with the others.
    """
    embedded = settings.vae in EMBEDDED
    local = Path(settings.vae).expanduser()
    vae = os.path.abspath(local) if not embedded and local.exists() else settings.vae
    size = settings.image_size or (EMBEDDED_IMAGE_SIZE if embedded else IMAGE_SIZE)
    if settings.image_size is None and local.suffix == ".h5":
        size = LatentStore.open(local, allow_incomplete=True).image_size
    source = Path(os.path.abspath(settings.source.expanduser()))
    device = device_name(settings.device, gpus=settings.gpus, procs=settings.procs)
    resolved = dataclasses.replace(settings, vae=vae, image_size=size, source=source, device=device)
    align = settings.align_features
    if align is None and settings.align_weights is not None:
        raise UsageError(
            "--align-weights has no effect without --align-features",
            "remove --align-weights, or add --align-features dinov2",
        )
    if align not in (None, "dinov2") and not align.startswith((TIMM, "hf:")):
        align = os.path.abspath(Path(align).expanduser())
        resolved = dataclasses.replace(resolved, align_features=align)
    own = EMBEDDED[settings.vae].options if embedded else {}
    for name in sorted({name for row in EMBEDDED.values() for name in row.options}):
        if name not in own and getattr(settings, name) is not None:
            flag = name.replace("_", "-")
            raise UsageError(
                f"--{flag} has no effect with --vae {settings.vae}", f"remove --{flag}"
            )
    missing = {name: value for name, value in own.items() if getattr(settings, name) is None}
    return dataclasses.replace(resolved, **missing)


def embedded_options(settings: EncodeSettings) -> dict[str, int]:
    """Resolved values of the options of an embedded autoencoder, by name."""
    return {name: getattr(settings, name) for name in EMBEDDED[settings.vae].options}


class Looked(NamedTuple):
    """What `look_at_source` finds.

    source: the images, in the order of the rows of what is written; None if OUT is complete and the
    source is gone. file: what this command goes on with or finds complete; None if it begins.
    out: what is written, OUT or the file in which it grows. old: OUT if it grows. later: how many
    images of the source are in neither.
    """

    source: Source | None
    file: Rows | None
    out: Path
    old: Rows | None = None
    later: int = 0


def look_at_source(settings: EncodeSettings) -> Looked:
    """The source and OUT, which this command begins, goes on with, lets grow or finds complete.

    Raises UsageError if OUT was made with other settings; SitError if it was begun with other
    images than a part of the source's.
    """
    file, out = _existing(settings), settings.out
    if file is None:
        return Looked(open_source(settings.source, labels=settings.labels), None, out)
    if file.attrs["complete"] and not is_there(settings.source):
        return Looked(None, file, out)
    source = None
    try:
        found = open_source(
            settings.source,
            labels=file.attrs.get("labels", "auto"),
            listing=file.attrs.get("source_listing", FIRST_LISTING),
        )
        source, difference = _as_in(file, found)
    except UsageError as error:  # its labels have changed
        difference = error.message
    # A complete store of a version up to 0.7 does not say of which pictures it is.
    unknown = file.attrs["complete"] and "source_content" not in file.attrs
    outdated = settings.overwrite and (unknown or bool(lost_labels(settings, file)))
    if not difference and not outdated:
        if len(source) == file.num_rows:
            return Looked(source, file, out)
        if not settings.overwrite:
            return _growing(file, source)
    if settings.overwrite:
        return Looked(open_source(settings.source, labels=settings.labels), None, out)
    raise SitError(
        f"{out} was begun with other images than {settings.source} holds: {difference}",
        "restore the images, begin again with --overwrite, or name another OUT",
    )


def _growing(file: Rows, source: Source) -> Looked:
    """The growth of the store `file`, begun already or not; source: all images, the rows' first."""
    out = growing_path(file.path)
    if (growing := begun_growing(file)) is not None:
        mine, difference = _as_in(growing, source)
        if not difference:
            num, classes = growing.num_rows, growing.shape("class_names")[0]
            part = mine.beginning(num, classes)
            return Looked(part, growing, out, file, later=len(source) - num)
    return Looked(source, None, out, file)


def _as_in(file: Rows, source: Source) -> tuple[Source | None, str]:
    """The source with the store's images first, and what tells these from what the store was begun
    with, '' if nothing does.
    """
    attrs, num = file.attrs, file.num_rows
    paths, class_names = file.texts("paths"), file.texts("class_names")
    lost = set(paths) - {item.name for item in source.items}
    if lost or len(source) < num:
        gone = f"; {min(lost)} is not there" if lost else ""
        return None, f"{num} then, {len(source)} now{gone}"
    mine = source.arranged(paths, class_names)
    grows = len(source) > num
    if mine is None or (not grows and len(mine.class_names) != len(class_names)):
        return None, "the same, with other labels or classes"
    if grows and "source_content" not in attrs:
        return None, (
            f"{num} then, {len(source)} now, and a store of version 0.7 or earlier cannot grow: it "
            "does not tell what its images held"
        )
    return mine, _other_images(file, mine.beginning(num, len(class_names)) if grows else mine)


def _other_images(file: Rows, source: Source) -> str:
    """What tells images of the same names and classes from those of the store, '' if nothing."""
    attrs = file.attrs
    if attrs["source_fingerprint"] != source.fingerprint:
        return "files of the same names, with other sizes"
    if "source_content" not in attrs:  # by a version up to 0.7
        return ""
    if not np.array_equal(file.array("labels"), source.labelled.labels):
        return "the same, with other labels or classes"
    # The list of a zip has the checksums of all files.
    zips = "source_members" in attrs and source.members is not None
    if attrs["source_content"] != source.content or (
        zips and attrs["source_members"] != source.members
    ):
        return "files of the same names and sizes, with other contents"
    return ""


def lost_labels(settings: EncodeSettings, file: Rows) -> str:
    """What to know of a store of a version up to 0.8 that lacks a shard's labels, else ''."""
    source = settings.source
    if file.attrs.get("source_listing", FIRST_LISTING) >= LISTING or not source.is_file():
        return ""
    if settings.labels != "auto" or not is_shard(source):
        return ""
    return (
        f"{settings.out} is without the labels of {source.name}, which versions up to 0.8 did not "
        "read: --overwrite encodes it again with its classes"
    )


def source_facts(source: Source, settings: EncodeSettings) -> dict[str, Any]:
    """The optional attributes of a new store: about its source, and --normalize."""
    facts = dict(
        source_listing=LISTING,
        labels=settings.labels,
        labels_from=source.labelled.origin,
        source_content=source.content,
    )
    if settings.normalize != "autoencoder":
        facts["normalize"] = settings.normalize
    return facts | ({"source_members": source.members} if source.members else {})


def _existing(settings: EncodeSettings) -> Rows | None:
    """OUT if it is a store made with these settings; None if it is absent or --overwrite is given.

    Raises UsageError otherwise.
    """
    out = settings.out
    if not out.exists():
        return None
    hint = "add --overwrite to replace it, or name another OUT"
    try:
        file = open_rows(out)
        difference = _difference(file.attrs, settings)
    except SitError as error:
        if settings.overwrite:
            return None
        raise UsageError(error.message, hint) from None
    if difference is None:
        return file
    if settings.overwrite:
        return None
    flag, stored, asked = difference
    raise UsageError(
        f"{out} was made with {flag} {stored}, not {asked}",
        f"{hint}; it was made by: {encode_command(file.attrs, out)}",
    )


def _difference(attrs: dict[str, Any], settings: EncodeSettings) -> tuple[str, Any, Any] | None:
    """(flag, stored, asked) of the first setting in which a store differs from `settings`."""
    pairs = [
        ("--vae", attrs["vae"], settings.vae),
        ("--image-size", attrs["image_size"], settings.image_size),
        ("--crop", attrs["crop"], settings.crop),
        ("flips:", attrs["flips"], settings.flip),
        (
            "--align-features",
            (attrs.get("align") or {}).get("asked", "none"),
            settings.align_features or "none",
        ),
        ("--normalize", normalize_of(attrs), settings.normalize),
        ("--labels", _labels_of(attrs, settings), settings.labels),
    ]
    spec = attrs["autoencoder"]
    if settings.vae in EMBEDDED and settings.vae == spec["kind"]:
        for name, stored in EMBEDDED[settings.vae].kept(spec).items():
            pairs.append((f"--{name.replace('_', '-')}", stored, getattr(settings, name)))
    if settings.precision != "auto" and settings.vae not in EMBEDDED:
        pairs.append(("--precision", attrs["precision"], settings.precision))
    if not attrs["complete"] and not {spec["kind"], settings.vae} & EMBEDDED.keys():
        # Weights may have moved. Whether they are the same is checked when they are loaded.
        del pairs[0]
    return next((pair for pair in pairs if pair[1] != pair[2]), None)


def normalize_of(attrs: dict[str, Any]) -> names.Normalize:
    """What --normalize was for a store with these attributes."""
    return attrs.get("normalize", "autoencoder")


def first_scaling(settings: EncodeSettings, autoencoder: Autoencoder) -> Scaling:
    """The scaling of a new store; --normalize channels replaces it when the store is complete."""
    if settings.normalize == "autoencoder":
        return autoencoder.scaling
    channels = autoencoder.latent_channels
    return Scaling((1.0,) * channels, (0.0,) * channels)


def _labels_of(attrs: dict[str, Any], settings: EncodeSettings) -> str:
    """What --labels was for a store: also what it came to, if that is what is asked for now."""
    came_to = attrs.get("labels_from", "folders")
    return came_to if came_to == settings.labels else attrs.get("labels", "auto")


def precision_of(vae: str, name: str, device: torch.device) -> torch.dtype:
    """The dtype for --precision `name`; the embedded autoencoders always compute in float32."""
    return torch.float32 if vae in EMBEDDED else resolve_precision(name, device)


def row_shape(spec: dict[str, Any], size: int) -> tuple[int, int, int]:
    """(C, h, w) of a row of the store for images of side `size`; a posterior has 2 C channels."""
    channels = spec["latent_channels"] * (1 if spec["deterministic"] else 2)
    return channels, size // spec["downsample"], size // spec["downsample"]


def row_shape_ahead(settings: EncodeSettings, file: Rows | None) -> tuple[int, ...] | None:
    """The shape of a row before anything is downloaded or fitted; None if it is not known yet."""
    size = settings.image_size
    if file is not None:
        return file.shape("latents")[1:]
    if settings.vae in EMBEDDED:
        channels, side = EMBEDDED[settings.vae].shape(embedded_options(settings))
        check_divisible(size, side, settings.vae)
        return channels, size // side, size // side
    if settings.vae == names.DEFAULT_VAE:
        check_divisible(size, 8, settings.vae)
        return 8, size // 8, size // 8
    if Path(settings.vae).exists():
        device = torch.device("cpu")
        autoencoder = load_autoencoder(settings.vae, device=device, dtype=torch.float32)
        check_size(size, autoencoder, settings.vae)
        return row_shape(autoencoder.spec, size)
    return None


def check_size(size: int, autoencoder: Autoencoder, vae: str) -> None:
    """Raise UsageError unless the autoencoder takes images of side `size`."""
    only = autoencoder.spec.get("image_size")
    if only not in (None, size):
        raise UsageError(
            f"--image-size {size}: {vae} takes images of {only} pixels", f"use --image-size {only}"
        )
    check_divisible(size, autoencoder.downsample, vae)


def check_divisible(size: int, downsample: int, vae: str) -> None:
    """Raise UsageError unless the autoencoder takes images of side `size`."""
    if size % downsample:
        raise UsageError(
            f"--image-size {size}: {vae} needs a multiple of {downsample}",
            f"use --image-size {max(downsample, round(size / downsample) * downsample)}",
        )
