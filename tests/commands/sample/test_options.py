"""Options that do not belong to the sampler in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.sample.options import ALL_OPTIONS, OPTIONS, mode_of, resolve
from sitcli.core.diffusion import Diffusion
from sitcli.errors import UsageError
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.settings.sample import SampleSettings
from tests.tiny import draw, make_run

# A value other than the default for each option of a sampler.
VALUES = dict(
    solver="heun", steps=7, t_shift="2", wt="kl", wt_scale=2.0, last_step="euler",
    last_step_size=0.1, eta=0.5, rtol=0.1, atol=0.1, t_start=0.9, t_end=0.1,
)  # fmt: skip


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, Checkpoint]:
    """A flow's for --ode and --sde, a chain's for --ddpm and --ddim."""
    for name in ("flow", "chain"):
        (tmp_path / name).mkdir()
    flow = open_checkpoint(make_run(tmp_path / "flow"))
    chain = open_checkpoint(make_run(tmp_path / "chain", process=Diffusion()))
    return dict(ode=flow, sde=flow, ddpm=chain, ddim=chain)


@pytest.mark.parametrize("mode", OPTIONS)
def test_each_sampler_takes_its_own_options(checkpoints, mode: str) -> None:
    """Catches: an option that a sampler accepts and does not look at, or its own one refused."""
    assert VALUES.keys() == set(ALL_OPTIONS)
    for name, value in VALUES.items():
        settings = SampleSettings(**{mode: True, name: value})
        if name in OPTIONS[mode]:
            assert getattr(resolve(settings, checkpoints[mode]), name) == value
        else:
            with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} .*--{mode}"):
                resolve(settings, checkpoints[mode])


@pytest.mark.parametrize("mode", OPTIONS)
def test_a_sampler_without_options_has_its_defaults(checkpoints, mode: str) -> None:
    """Catches: a default of another sampler's, or one that is left open."""
    found = resolve(SampleSettings(**{mode: True}), checkpoints[mode])
    defaults = dict(OPTIONS[mode])
    if "last_step_size" in defaults:
        defaults["last_step_size"] = checkpoints[mode].process.last_step_size
    assert {name: getattr(found, name) for name in OPTIONS[mode]} == defaults
    others = set(ALL_OPTIONS) - set(OPTIONS[mode])
    assert {getattr(found, name) for name in others} <= {None}
    assert mode_of(found) == mode


@pytest.mark.parametrize(("mode", "usual"), [("ode", "ode"), ("ddpm", "ddpm")])
def test_the_sampler_by_default_is_the_processs(checkpoints, mode: str, usual: str) -> None:
    """Catches: a chain's model sampled as a flow by default, or the reverse."""
    assert mode_of(SampleSettings()) is None
    assert mode_of(resolve(SampleSettings(), checkpoints[mode])) == usual


def test_a_choice_adds_and_takes_away_options(checkpoints) -> None:
    """Catches: steps given to an adaptive solver, or its tolerances given to one of fixed steps."""
    adaptive = resolve(SampleSettings(solver="dopri5", rtol=1e-3), checkpoints["ode"])
    assert (adaptive.rtol, adaptive.steps) == (1e-3, None)
    assert adaptive.atol is not None
    with_loss = resolve(SampleSettings(sde=True, wt="kl-eta"), checkpoints["sde"])
    assert with_loss.eta is not None
    none = resolve(SampleSettings(sde=True, last_step="none", t_end=0.02), checkpoints["sde"])
    assert (none.last_step_size, none.t_end) == (None, 0.02)
    constant = resolve(SampleSettings(sde=True, wt="constant"), checkpoints["sde"])
    assert constant.last_step == "tweedie"
    said = resolve(SampleSettings(sde=True, wt="constant", last_step="mean"), checkpoints["sde"])
    assert said.last_step == "mean"
    assert resolve(SampleSettings(solver="euler"), checkpoints["ode"]).steps == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler-maruyama"}, "--solver euler-maruyama is not a solver of --ode"),
        ({"solver": "rk4", "sde": True}, "not a solver of --sde"),
        ({"solver": "dopri5", "steps": 3}, "--steps has no effect with --ode --solver dopri5"),
        ({"sde": True, "last_step_size": 0.0}, "leaves no last step"),
        ({"sde": True, "ode": True}, "--ode and --sde are two samplers"),
        ({"ddpm": True}, "--ddpm samples the chain of a DiT model"),
        ({"ddim": True}, "--ddim samples the chain of a DiT model"),
        # An option that the sampler would not look at is refused, not swallowed.
        ({"wt": "kl"}, "--wt has no effect with --ode"),
        ({"wt_scale": 2.0}, "--wt-scale has no effect with --ode"),
        ({"last_step": "euler"}, "--last-step has no effect"),
        ({"eta": 0.5}, "--eta has no effect with --ode"),
        ({"eta": 0.5, "sde": True}, "--eta has no effect with --sde"),
        ({"rtol": 0.5}, "--rtol has no effect with --ode"),
        ({"atol": 0.5, "sde": True}, "--atol has no effect with --sde"),
        (
            {"sde": True, "last_step": "none", "last_step_size": 0.1},
            "--last-step-size has no effect",
        ),
        ({"sde": True, "t_end": 0.1}, "--t-end has no effect with --sde"),
        ({"ddpm": True, "t_start": 0.9}, "--ddpm samples the chain"),
        ({"cfg_channels": "3"}, "no effect without guidance"),
    ],
)
def test_bad_options(run: Path, options: dict, message: str) -> None:
    """Catches: options that contradict each other silently overwritten."""
    with pytest.raises(UsageError, match=message):
        draw(run, "out", **options)
    assert not (run.parents[1] / "out").exists()
