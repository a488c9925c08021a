"""Options that do not belong to the sampler in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.errors import UsageError
from tests.tiny import draw


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler-maruyama"}, "--solver euler-maruyama is not for --ode"),
        ({"solver": "rk4", "sde": True}, "not for --sde"),
        ({"solver": "dopri5", "steps": 3}, "--steps means nothing to --ode --solver dopri5"),
        ({"sde": True, "last_step_size": 0.0}, "leaves no last step"),
        ({"sde": True, "ode": True}, "--ode and --sde are two samplers"),
        ({"ddpm": True}, "--ddpm walks the chain of a DiT model"),
        ({"ddim": True}, "--ddim walks the chain of a DiT model"),
        # An option that the sampler would not look at is refused, not swallowed.
        ({"wt": "kl"}, "--wt means nothing to --ode"),
        ({"wt_scale": 2.0}, "--wt-scale means nothing to --ode"),
        ({"last_step": "euler"}, "--last-step means nothing"),
        ({"eta": 0.5}, "--eta means nothing to --ode"),
        ({"eta": 0.5, "sde": True}, "--eta means nothing to --sde"),
        ({"rtol": 0.5}, "--rtol means nothing to --ode"),
        ({"atol": 0.5, "sde": True}, "--atol means nothing to --sde"),
        ({"sde": True, "last_step": "none", "last_step_size": 0.1}, "--last-step-size means"),
        ({"cfg_channels": "3"}, "nothing without guidance"),
    ],
)
def test_bad_options(run: Path, options: dict, message: str) -> None:
    """Catches: options that contradict each other silently overwritten."""
    with pytest.raises(UsageError, match=message):
        draw(run, "out", **options)
    assert not (run.parents[1] / "out").exists()
