"""A latent store that goes on: what was not said is as the store was begun."""

from __future__ import annotations

import dataclasses

from sitcli.autoencoders.load import EMBEDDED
from sitcli.commands.encode.job import normalize_of
from sitcli.errors import SitError
from sitcli.latents.layout import open_rows
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.option import Said


def unsaid_as_begun(settings: EncodeSettings, said: Said | None) -> EncodeSettings:
    """The settings in which all that was not said is as in OUT, if it is a store.

    said: the options that were given; None: all of them. With --overwrite OUT does not matter.
    """
    if said is None or settings.overwrite or not settings.out.is_file():
        return settings
    try:
        with open_rows(settings.out) as file:
            attrs = file.attrs
    except SitError:  # the error comes where OUT is needed
        return settings
    spec = attrs["autoencoder"]
    begun = dict(
        vae=attrs["vae"],
        image_size=attrs["image_size"],
        crop=attrs["crop"],
        normalize=normalize_of(attrs),
        flip=attrs["flips"],
        align_features=(attrs.get("align") or {}).get("asked"),
    )
    vae = settings.vae if "vae" in said else attrs["vae"]
    if vae in EMBEDDED and vae == spec["kind"]:
        begun |= EMBEDDED[vae].kept(spec)
    return dataclasses.replace(
        settings, **{name: value for name, value in begun.items() if name not in said}
    )
