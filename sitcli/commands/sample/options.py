"""Which option belongs to which sampler, and what each defaults to."""

from __future__ import annotations

import dataclasses
from typing import Any

from sitcli import names
from sitcli.commands.parsing import parse_interval, parse_shift
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Ode
from sitcli.core.ode import ADAPTIVE
from sitcli.core.sde import LAST_STEPS
from sitcli.core.wt import DEFAULT_ETA, WT
from sitcli.errors import UsageError
from sitcli.runs.checkpoint import Checkpoint
from sitcli.settings.sample import SampleSettings

LEAVE_OUT = "leave it out"
GUIDE_SCALE = 2.0
# A mode's options and their defaults; it refuses every other one of these.
OPTIONS: dict[str, dict[str, Any]] = {
    "ode": dict(solver="heun", steps=50, t_shift=None),
    "sde": dict(
        solver="euler-maruyama",
        steps=250,
        t_shift=None,
        wt="sigma",
        wt_scale=1.0,
        last_step="mean",
        last_step_size=0.04,
    ),
    "ddpm": dict(steps=250),
    "ddim": dict(steps=50, eta=0.0),
}
# What a choice of a mode adds to its options, or takes away (None).
CHOICES: dict[tuple[str, str], dict[str, Any]] = {
    **{
        ("solver", name): dict(rtol=Ode.rtol, atol=Ode.atol, steps=None, t_shift=None)
        for name in ADAPTIVE
    },
    **{("wt", name): dict(eta=DEFAULT_ETA) for name, row in WT.items() if row.needs_loss},
    **{
        ("last_step", name): dict(last_step_size=None)
        for name, s in LAST_STEPS.items()
        if s is None
    },
}
ALL_OPTIONS = sorted(
    {name for table in (OPTIONS, CHOICES) for row in table.values() for name in row}
)
SOLVERS = {"ode": names.ODE_SOLVERS, "sde": names.SDE_SOLVERS}


def mode_of(settings: SampleSettings) -> str | None:
    """The one of ode, sde, ddpm, ddim that was asked for. UsageError for two of them."""
    asked = [mode for mode in OPTIONS if getattr(settings, mode)]
    if len(asked) > 1:
        raise UsageError(f"--{asked[0]} and --{asked[1]} are two samplers", "give one of them")
    return asked[0] if asked else None


def resolve(settings: SampleSettings, checkpoint: Checkpoint) -> SampleSettings:
    """Fill in the sampler and its defaults; UsageError for options that it does not have."""
    discrete = isinstance(checkpoint.process, Diffusion)
    mode = mode_of(settings) or ("ddpm" if discrete else "ode")
    if mode in ("ddpm", "ddim") and not discrete:
        raise UsageError(
            f"--{mode} walks the chain of a DiT model, and {checkpoint.path} is a SiT model",
            "--ode or --sde",
        )
    given = {name: getattr(settings, name) for name in ALL_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    options = OPTIONS[mode] | {k: v for k, v in given.items() if k in OPTIONS[mode]}
    if options.get("solver", "") not in SOLVERS.get(mode, ("",)):
        choices = ", ".join(SOLVERS[mode])
        raise UsageError(f"--solver {options['solver']} is not for --{mode}", f"one of {choices}")
    choice = ""
    for (name, value), more in CHOICES.items():
        if options.get(name) == value:
            choice += f" --{name.replace('_', '-')} {value}"
            options = {k: v for k, v in options.items() if k not in more or more[k] is not None}
            options |= {k: given.get(k, v) for k, v in more.items() if v is not None}
    for name in given.keys() - options.keys():
        flag, hint = name.replace("_", "-"), "leave it out"
        if name not in OPTIONS[mode]:
            hint += _owners(name)
        raise UsageError(f"--{flag} means nothing to --{mode}{choice}", hint)
    if "t_shift" in options:
        options["t_shift"] = _shift(settings, checkpoint)
    return dataclasses.replace(
        settings, **{mode: True}, **options, **_resolve_guidance(settings, checkpoint)
    )


def _shift(settings: SampleSettings, checkpoint: Checkpoint) -> str | None:
    """What was asked for, or the training's; None where that is 1."""
    if settings.t_shift is None:
        shift = float(checkpoint.meta.get("t_shift", 1))
    else:
        shift = parse_shift(settings.t_shift, checkpoint.config.latent_shape)
    return None if shift == 1 else f"{shift:.6g}"


def _resolve_guidance(settings: SampleSettings, checkpoint: Checkpoint) -> dict[str, Any]:
    """Guided channels and the guide's scale. UsageError for options without their guidance."""
    s = settings
    guided = s.cfg_scale != 1 or s.guide is not None or s.internal_scale != 1
    if s.cfg_interval is not None:
        parse_interval(s.cfg_interval)
    for name, there, of in (
        ("cfg_channels", guided, "guidance: e.g. --cfg-scale 1.5"),
        ("cfg_interval", s.cfg_scale != 1, "--cfg-scale: e.g. --cfg-scale 1.5"),
        ("guide_scale", s.guide is not None, "--guide"),
    ):
        if getattr(s, name) is not None and not there:
            what, _, hint = of.partition(": ")
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} means nothing without {what}", hint or LEAVE_OUT)
    usual = checkpoint.meta.get("guided_channels", "all")
    scale = None
    if s.guide is not None:
        scale = GUIDE_SCALE if s.guide_scale is None else s.guide_scale
    return dict(cfg_channels=(s.cfg_channels or usual) if guided else None, guide_scale=scale)


def _owners(name: str) -> str:
    owners = [f"--{mode}" for mode, options in OPTIONS.items() if name in options]
    owners += [f"--{k.replace('_', '-')} {v}" for (k, v), more in CHOICES.items() if more.get(name)]
    return f"; it is an option of {' or '.join(owners)}" if owners else ""
