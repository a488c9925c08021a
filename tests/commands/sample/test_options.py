"""Options that do not belong to the sampler in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.errors import UsageError
from tests.tiny import draw


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
        ({"cfg_channels": "3"}, "no effect without guidance"),
    ],
)
def test_bad_options(run: Path, options: dict, message: str) -> None:
    """Catches: options that contradict each other silently overwritten."""
    with pytest.raises(UsageError, match=message):
        draw(run, "out", **options)
    assert not (run.parents[1] / "out").exists()
