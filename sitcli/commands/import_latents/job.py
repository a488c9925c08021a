"""`sit import-latents` before it writes: the source is opened, and its scaling is decided."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sitcli.autoencoders.load import unknown_spec
from sitcli.commands.import_latents.layouts import open_source
from sitcli.commands.import_latents.scales import questions
from sitcli.commands.import_latents.source import Source
from sitcli.errors import SitError, UsageError
from sitcli.latents.layout import encode_command, open_rows
from sitcli.latents.scaling import Scaling, wrong_values
from sitcli.settings.latents import ImportLatentsSettings
from sitcli.storage.files import hash_json
from sitcli.storage.rows import Rows
from sitcli.weights.latent_space import named_autoencoder

STANDARDISE = "channels"  # the --normalize that takes statistics of the values
# Pixels of a latent position where nobody says: SD's f8, and f16 as VA-VAE's f16d32.
DOWNSAMPLE, DEEP_DOWNSAMPLE, DEEP_CHANNELS = 8, 16, 32


@dataclass(frozen=True, kw_only=True)
class Job:
    """Latents to import, with everything opened and checked.

    given: how values of the source are scaled, None for not at all. scaling: what a store with
    `normalize` None keeps. facts: everything the store depends on beside the source.
    """

    settings: ImportLatentsSettings
    source: Source
    spec: dict[str, Any]
    arrays: dict[str, np.ndarray]
    given: Scaling | None
    scaling: Scaling
    normalize: str | None
    image_size: int
    notes: list[str]
    warnings: list[str]

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same to go on with a store."""
        return dict(
            layout=self.source.layout,
            given=None if self.given is None else self.given.spec(),
            scaling=None if self.normalize else self.scaling.spec(),
            normalize=self.normalize,
            autoencoder=[self.spec["name"], self.spec["hash"]],
            image_size=self.image_size,
        )

    @property
    def words(self) -> list[str]:
        """The options of the command, to be typed again."""
        words = []
        for field in dataclasses.fields(self.settings):
            value = getattr(self.settings, field.name)
            if field.name in ("source", "out", "overwrite") or value == field.default:
                continue
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words.append(f"--{flag}={value}")
        return words


def prepare(settings: ImportLatentsSettings) -> Job:
    """The job of these settings.

    Raises UsageError if it is not known how the latents are scaled, SitError for a source that is
    damaged or whose values contradict its scaling.
    """
    source = Path(os.path.abspath(settings.source.expanduser()))
    settings = dataclasses.replace(settings, source=source)
    opened = open_source(settings)
    spec, arrays = _autoencoder(settings, opened)
    if spec is not None and spec["latent_channels"] != opened.channels:
        opened = _as_moments(opened, spec)
    notes: list[str] = []
    base = _base_scaling(settings, opened, spec)
    normalize = settings.normalize
    if base is None and opened.standardise and normalize != STANDARDISE:
        normalize = STANDARDISE
        notes.append(
            f"{opened.path} states no statistics: each channel is brought to mean 0 and standard "
            "deviation 1"
        )
    if base is None and normalize != STANDARDISE:
        raise UsageError(
            f"{opened.path} does not say how its latents are scaled",
            "add --vae NAME, --scaling 0.18215 or what it is, or --normalize channels",
        )
    scaled = {"auto": opened.scaled, "scaled": True, "unscaled": False}[settings.values]
    if scaled and base is None:
        raise UsageError(
            "--values scaled needs to know by what they are scaled", "add --scaling, or --vae NAME"
        )
    size = _image_size(settings, opened, spec)
    if spec is None:
        moments, side = opened.moments, size // opened.row_shape[1]
        spec = unknown_spec(opened.channels, downsample=side, moments=moments)
        notes.append(
            f"which autoencoder made them is not known: sit sample will ask for --vae (images of "
            f"{size} pixels; --image-size says otherwise)"
        )
    given = base if scaled else None
    statistics = normalize == STANDARDISE
    scaling = base or Scaling()
    return Job(
        settings=settings, source=opened, spec=spec, arrays=arrays, given=given, scaling=scaling,
        normalize=normalize if statistics else None, image_size=size, notes=notes,
        warnings=questions(opened, given, None if statistics else scaling, stop=settings.check),
    )  # fmt: skip


def _autoencoder(
    settings: ImportLatentsSettings, source: Source
) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """Spec and arrays of the autoencoder, (None, {}) if it is not known."""
    name = settings.vae or source.vae
    if name is None:
        return None, {}
    return named_autoencoder(name)


def _as_moments(source: Source, spec: dict[str, Any]) -> Source:
    """The source with rows of the posterior's mean and std, if that fits the autoencoder."""
    if source.channels == 2 * spec["latent_channels"] and not source.moments:
        return dataclasses.replace(source, moments=True)
    raise UsageError(
        f"{source.path} holds latents of {source.channels} channels, and {spec['name']} has "
        f"{spec['latent_channels']}",
        "name the autoencoder that made them with --vae",
    )


def _base_scaling(
    settings: ImportLatentsSettings, source: Source, spec: dict[str, Any] | None
) -> Scaling | None:
    """By the options, the source, or the autoencoder; None if none of them says it."""
    base = source.scaling
    if base is None and spec is not None and not source.standardise:
        base = Scaling.of_spec(spec)
    if settings.scaling is None and settings.shift is None:
        return base
    if settings.scaling is None and base is None:
        raise UsageError("--shift needs --scaling", "add --scaling, 1 for none")
    base = base or Scaling()
    channels = source.channels
    factor = _numbers("--scaling", settings.scaling, channels, zero=False, default=base.factor)
    # A factor of one's own for all channels does not go with the source's shift of each.
    own = base.shift if settings.scaling is None else 0.0
    shift = _numbers("--shift", settings.shift, channels, zero=True, default=own)
    return Scaling(factor, shift)


def _numbers(flag: str, text: str | None, channels: int, *, zero: bool, default: Any) -> Any:
    if text is None:
        return default
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or wrong_values(values, channels, zero=zero):
        raise UsageError(
            f"{flag} {text} is not a number, or {channels} with commas between",
            f"e.g. {flag} 0.18215",
        )
    return values if len(values) > 1 else values[0]


def _image_size(
    settings: ImportLatentsSettings, source: Source, spec: dict[str, Any] | None
) -> int:
    """The side of the images in pixels."""
    side = source.row_shape[1]
    deep = source.channels >= DEEP_CHANNELS
    guess = DEEP_DOWNSAMPLE if deep else DOWNSAMPLE
    expected = side * (guess if spec is None else spec["downsample"])
    size = settings.image_size or expected
    if size % side or (spec is not None and size != expected):
        raise UsageError(
            f"--image-size {size} does not fit latents of {side} x {side}",
            f"remove it, or use --image-size {expected}",
        )
    return size


def existing(job: Job) -> Rows | None:
    """OUT if this command goes on with it or finds it complete, None if it is to be created.

    Raises UsageError if it is something else.
    """
    out = job.settings.out
    if not out.exists() or out.is_dir():
        return None
    hint = "add --overwrite to replace it, or name another OUT"
    try:
        file = open_rows(out)
    except SitError as error:
        if job.settings.overwrite:
            return None
        raise UsageError(error.message, hint) from None
    attrs = file.attrs
    alike = attrs.get("imported", {}).get("facts") == hash_json(job.facts)
    if alike and attrs["source_fingerprint"] == job.source.fingerprint:
        return file
    if job.settings.overwrite:
        return None
    what = "with other options" if "imported" in attrs and not alike else "of other latents"
    if "imported" not in attrs:
        what = "by sit encode-latents"
    raise UsageError(
        f"{out} was made {what}", f"{hint}; it was made by: {encode_command(attrs, out)}"
    )
