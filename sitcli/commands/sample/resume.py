"""A sample set that goes on: what was not said is as the set was begun."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sitcli.commands.sample.options import ALL_OPTIONS, OPTIONS
from sitcli.errors import UsageError
from sitcli.samples.sample_set import SampleSet, file_of
from sitcli.settings.option import Said
from sitcli.settings.presets import EARLIER_SAMPLE, SAMPLE
from sitcli.settings.sample import SampleSettings

# The settings that the set's meta keeps as they were given, under their own names.
AS_GIVEN = (
    *("weights", "num", "seed", "labels", "classes", "cfg_scale", "guide_scale"),
    *("internal_scale", *(name for name in ALL_OPTIONS if name != "t_shift")),
)


def unsaid_as_begun(settings: SampleSettings, said: Said | None) -> SampleSettings:
    """The settings in which all that was not said is as in the set that --out names, if it exists.

    said: the options that were given, each with how to take it back; None: all of them.
    Raises UsageError for an option that contradicts the set.
    """
    if said is None or settings.out is None or settings.invert is not None:
        return settings
    file = file_of(settings.out)
    if not file.is_file():
        return settings
    with SampleSet.open(file).rows as rows:
        meta = SampleSet(rows).meta
    if meta.get("mode") not in OPTIONS:
        return settings
    begun = _begun(meta)
    for name in earlier_preset(settings):  # `prepare` compares them
        begun.pop(name, None)
    for name in said.keys() & begun.keys() - {"checkpoint", "guide", "cfg_interval", "t_shift"}:
        ours = getattr(settings, name)
        if name in OPTIONS and ours and not begun[name]:
            raise UsageError(
                f"{file} was drawn with --{meta['mode']}, not --{name}",
                f"name another --out, or {said[name]}",
            )
        if name not in OPTIONS and ours != begun[name]:
            flag = name.replace("_", "-")
            raise UsageError(
                f"{file} was drawn with --{flag} {begun[name]}, not {ours}",
                f"name another --out, or {said[name]}",
            )
    if meta.get("noise") is not None and "noise" not in said:
        raise UsageError(
            f"{file} was drawn from the noise of a file", "add --noise FILE, or name another --out"
        )
    if "noise" in said:
        begun.pop("num", None)  # the file decides
    return dataclasses.replace(
        settings, **{name: value for name, value in begun.items() if name not in said}
    )


def earlier_preset(settings: SampleSettings) -> dict[str, Any]:
    """What --preset set in earlier versions, of the options that it has set now."""
    preset = settings.preset or ""
    return {
        name: value
        for name, value in EARLIER_SAMPLE.get(preset, {}).items()
        if getattr(settings, name) == SAMPLE[preset][name]  # else the user said something else
    }


def _begun(meta: dict[str, Any]) -> dict[str, Any]:
    """The settings that the meta of a sample set keeps."""
    begun = {name: meta[name] for name in AS_GIVEN if meta.get(name) is not None}
    begun |= {mode: mode == meta["mode"] for mode in OPTIONS}
    only = bool(meta.get("latents_only"))
    begun |= dict(latents_only=only, latents=bool(meta.get("latents_kept")) and not only)
    guided = begun.get("cfg_scale", 1) != 1 or meta.get("guide") or meta.get("internal_scale")
    if guided and "cfg_channels" in meta:
        begun["cfg_channels"] = meta["cfg_channels"]
    if meta.get("cfg_interval"):
        begun["cfg_interval"] = ",".join(map(str, meta["cfg_interval"]))
    if meta.get("t_shift"):
        begun["t_shift"] = meta["t_shift"]
    for name in ("checkpoint", "guide"):
        if meta.get(name):
            begun[name] = Path(meta[name])
    return begun
