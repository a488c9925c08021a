"""The sampler that options ask for, and the times at which it begins and ends."""

from __future__ import annotations

import dataclasses
from typing import Any

from sitcli.core.chain import NUM_STEPS
from sitcli.core.diffusion import Ddim, Ddpm
from sitcli.core.flow import Flow, Ode, Sde
from sitcli.core.intervals import MARGIN, Interval, beginning_at
from sitcli.core.ode import ADAPTIVE
from sitcli.core.sde import LAST_STEPS
from sitcli.core.wt import WT, LossCurve, wt_of
from sitcli.errors import UsageError
from sitcli.runs.checkpoint import Checkpoint
from sitcli.settings.sample import SampleSettings

Sampler = Ode | Sde | Ddpm | Ddim
# Where versions before 0.8 began the ODE of score and noise models on linear and gvp.
ODE_START_BEFORE_0_8 = 1 - 1e-5
END_MARGIN = 1e-5  # the least t at which anything is divided by sigma


def sampler_of(s: SampleSettings, checkpoint: Checkpoint) -> Sampler:
    """The sampler of resolved settings. Raises UsageError for values that it cannot work with."""
    if s.ddpm or s.ddim:
        return _of_the_chain(s)
    shift = float(s.t_shift or 1)
    interval = _interval(s, checkpoint)
    if s.ode and s.solver in ADAPTIVE:
        return Ode(solver=s.solver, rtol=s.rtol, atol=s.atol, interval=interval)
    if s.ode:
        return Ode(solver=s.solver, steps=s.steps, shift=shift, interval=interval)
    curve = checkpoint.loss_curve if WT[s.wt].needs_loss else None
    try:
        w = wt_of(s.wt, scale=s.wt_scale, eta=s.eta or 0.0, loss_curve=curve)
    except ValueError as error:
        hint = "use --eta 0.1" if s.eta == 0 else "use another --wt"
        raise UsageError(f"--wt {s.wt}: {error}", hint) from None
    return Sde(
        w=w,
        wt=s.wt,
        solver=s.solver,
        steps=s.steps,
        last_step=s.last_step,
        last_step_size=s.last_step_size or 0.0,
        shift=shift,
        interval=interval,
    )


def _of_the_chain(s: SampleSettings) -> Ddpm | Ddim:
    if s.steps > NUM_STEPS:
        raise UsageError(
            f"--steps {s.steps}: the chain has {NUM_STEPS} steps",
            f"use at most --steps {NUM_STEPS}",
        )
    if s.ddim and s.eta > 1:
        raise UsageError(
            f"--eta {s.eta:g}: DDIM's eta is at most 1", "use --eta 1, as noisy as DDPM"
        )
    return Ddpm(steps=s.steps) if s.ddpm else Ddim(steps=s.steps, eta=s.eta)


def _interval(s: SampleSettings, checkpoint: Checkpoint) -> Interval:
    """Where the ODE or the SDE's noisy steps begin and end, by --t-start, --t-end or by default."""
    if s.last_step_size == 0:
        raise UsageError("--last-step-size 0 leaves no last step", "use --last-step none")
    process = checkpoint.process
    whole, interval = (_of_the_process(s, process, c) for c in (None, checkpoint.loss_curve))
    if s.t_start is not None:
        if s.t_start > whole.start == 1 - MARGIN:
            raise UsageError(
                f"--t-start {s.t_start:g}: the sampler divides by alpha, which is 0 at t = 1",
                f"use at most --t-start {whole.start:g}",
            )
        interval = beginning_at(interval, s.t_start, process.alpha_sigma)
    if s.t_end is not None:
        divides = s.sde or whole.jump
        least = max(END_MARGIN if divides else whole.end, process.least_time)
        if s.t_end < least:
            raise UsageError(
                f"--t-end {s.t_end:g}: the sampler divides by sigma, which is 0 at t = 0",
                f"use at least --t-end {least:g}",
            )
        interval = interval._replace(end=s.t_end, jump=False, jump_from=0.0)
    if interval.start <= interval.end:
        raise UsageError(
            f"sampling would begin at t = {interval.start:g} and end at t = {interval.end:g}, and "
            "t = 1 is noise",
            "use a larger --t-start, or a smaller "
            + ("--last-step-size" if s.last_step_size else "--t-end"),
        )
    return interval


def _of_the_process(s: SampleSettings, process: Flow, curve: LossCurve | None) -> Interval:
    """The interval of the process itself, for a network whose velocity loss is `curve`."""
    if s.ode:
        return process.ode_interval(curve)
    return process.sde_interval(s.wt, s.last_step_size or 0.0, curve)


def shrinks(sampler: Sampler) -> bool:
    """Whether the last step follows an SDE whose w_t times the score diverges at the data."""
    if not isinstance(sampler, Sde):
        return False
    last = LAST_STEPS[sampler.last_step]
    return last is not None and last.uses_w and not WT[sampler.wt].vanishes_at_data


def as_recorded(sampler: Sampler, recorded: list[Any] | None, process: Flow) -> Sampler:
    """The sampler over the interval that a begun sample set recorded.

    None is a set begun before version 0.8, which recorded none.
    """
    if sampler.interval is None:
        return sampler
    if recorded is not None:
        return dataclasses.replace(sampler, interval=Interval(*recorded))
    if isinstance(sampler, Sde):
        interval = process.sde_interval(sampler.wt, sampler.last_step_size)
    else:
        interval = process.ode_interval()
        if interval.start < 1:
            interval = interval._replace(start=ODE_START_BEFORE_0_8)
    return dataclasses.replace(sampler, interval=interval._replace(scale=1.0, jump_from=0.0))
