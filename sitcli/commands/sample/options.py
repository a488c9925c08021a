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

GUIDE_SCALE = 2.0
# Each mode's options and their defaults. A mode refuses the options of the others.
OPTIONS: dict[str, dict[str, Any]] = {
    "ode": dict(solver="heun", steps=50, t_shift=None, t_start=None, t_end=None),
    "sde": dict(
        solver="euler-maruyama",
        steps=250,
        t_shift=None,
        t_start=None,
        wt="sigma",
        wt_scale=1.0,
        last_step="mean",
        last_step_size=None,
    ),
    "ddpm": dict(steps=250),
    "ddim": dict(steps=50, eta=0.0),
}
AWAY = object()
# Options that a choice within a mode adds, with their defaults, or takes AWAY.
CHOICES: dict[tuple[str, str], dict[str, Any]] = {
    **{
        ("solver", name): dict(rtol=Ode.rtol, atol=Ode.atol, steps=AWAY, t_shift=AWAY)
        for name in ADAPTIVE
    },
    # One evaluation a step where heun takes two, and first order.
    ("solver", "euler"): dict(steps=100),
    **{("wt", name): dict(eta=DEFAULT_ETA) for name, row in WT.items() if row.needs_loss},
    **{("wt", n): dict(last_step="tweedie") for n, row in WT.items() if not row.vanishes_at_data},
    # A last step goes on to t = 0; without one the SDE ends where it stops.
    **{
        ("last_step", name): dict(last_step_size=AWAY, t_end=None)
        for name, step in LAST_STEPS.items()
        if step is None
    },
}
ALL_OPTIONS = sorted(
    {name for table in (OPTIONS, CHOICES) for row in table.values() for name in row}
)
SOLVERS = {"ode": names.ODE_SOLVERS, "sde": names.SDE_SOLVERS}


def mode_of(settings: SampleSettings) -> str | None:
    """The sampler that was asked for: ode, sde, ddpm, ddim, or None.

    Raises UsageError if two were asked for.
    """
    asked = [mode for mode in OPTIONS if getattr(settings, mode)]
    if len(asked) > 1:
        raise UsageError(f"--{asked[0]} and --{asked[1]} are two samplers", "remove one of them")
    return asked[0] if asked else None


def resolve(settings: SampleSettings, checkpoint: Checkpoint) -> SampleSettings:
    """The settings with the sampler and its defaults filled in.

    Raises UsageError for options that the sampler does not have.
    """
    discrete = isinstance(checkpoint.process, Diffusion)
    mode = mode_of(settings) or ("ddpm" if discrete else "ode")
    if mode in ("ddpm", "ddim") and not discrete:
        raise UsageError(
            f"--{mode} samples the chain of a DiT model, and {checkpoint.path} is a SiT model",
            "use --ode or --sde",
        )
    given = {name: getattr(settings, name) for name in ALL_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    options = OPTIONS[mode] | {k: v for k, v in given.items() if k in OPTIONS[mode]}
    if options.get("solver", "") not in SOLVERS.get(mode, ("",)):
        choices = ", ".join(SOLVERS[mode])
        raise UsageError(
            f"--solver {options['solver']} is not a solver of --{mode}", f"use one of {choices}"
        )
    choice = ""
    for (name, value), more in CHOICES.items():
        if options.get(name) == value:
            choice += f" --{name.replace('_', '-')} {value}"
            options = {k: v for k, v in options.items() if more.get(k) is not AWAY}
            options |= {k: given.get(k, v) for k, v in more.items() if v is not AWAY}
    for name in given.keys() - options.keys():
        flag = name.replace("_", "-")
        hint = f"remove --{flag}"
        if name not in OPTIONS[mode]:
            hint += _owners(name)
        raise UsageError(f"--{flag} has no effect with --{mode}{choice}", hint)
    if "t_shift" in options:
        options["t_shift"] = _shift(settings, checkpoint)
    if "last_step_size" in options and options["last_step_size"] is None:
        options["last_step_size"] = checkpoint.process.last_step_size
    return dataclasses.replace(
        settings, **{mode: True}, **options, **_resolve_guidance(settings, checkpoint)
    )


def _shift(settings: SampleSettings, checkpoint: Checkpoint) -> str | None:
    """The time shift that was asked for, else the one of the training; None if it is 1."""
    if settings.t_shift is None:
        shift = float(checkpoint.meta.get("t_shift", 1))
    else:
        shift = parse_shift(settings.t_shift, checkpoint.config.latent_shape)
    return None if shift == 1 else f"{shift:.6g}"


def _resolve_guidance(settings: SampleSettings, checkpoint: Checkpoint) -> dict[str, Any]:
    """Guided channels and the guide's scale. Raises UsageError for options without guidance."""
    s = settings
    guided = s.cfg_scale != 1 or s.guide is not None or s.internal_scale != 1
    if s.cfg_interval is not None:
        parse_interval(s.cfg_interval)
    for name, there, of in (
        ("cfg_channels", guided, "guidance: add --cfg-scale 1.5"),
        ("cfg_interval", s.cfg_scale != 1, "--cfg-scale: add --cfg-scale 1.5"),
        ("guide_scale", s.guide is not None, "--guide"),
    ):
        if getattr(s, name) is not None and not there:
            what, _, hint = of.partition(": ")
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} has no effect without {what}", hint or f"remove --{flag}")
    usual = checkpoint.meta.get("guided_channels", "all")
    scale = None
    if s.guide is not None:
        scale = GUIDE_SCALE if s.guide_scale is None else s.guide_scale
    return dict(cfg_channels=(s.cfg_channels or usual) if guided else None, guide_scale=scale)


def _owners(name: str) -> str:
    owners = [f"--{mode}" for mode, options in OPTIONS.items() if name in options]
    owners += [
        f"--{k.replace('_', '-')} {v}"
        for (k, v), more in CHOICES.items()
        if more.get(name, AWAY) is not AWAY
    ]
    return f", or sample with {' or '.join(owners)}" if owners else ""
