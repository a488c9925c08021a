"""A sample set that goes on, where not all options are typed again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sitcli.commands.sample.resume import unsaid_as_begun
from sitcli.commands.sample.stage import plan, sample
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import UsageError
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from tests.tiny import finish, make_run


def begin(folder: Path, process=None, **options) -> SampleSettings:
    """The settings of a set of four images that lacks the second batch."""
    settings = SampleSettings(
        checkpoint=make_run(folder, process=process), out=folder / "set", num=4, batch_size=2,
        device="cpu", precision="fp32", **options,
    )  # fmt: skip
    finish(sample(settings))
    with SampleSet.open(folder / "set", writable=True).rows as rows:
        rows.write([2, 3], status=0)
        rows.set_attrs(complete=False)
    return settings


@pytest.mark.parametrize(
    ("process", "options"),
    [
        (None, dict(steps=3, solver="euler", seed=5)),
        (None, dict(sde=True, wt="kl-eta", eta=0.25, steps=3, last_step="euler")),
        (None, dict(ode=True, solver="dopri5", rtol=0.125, atol=0.25)),
        (None, dict(steps=2, cfg_scale=1.5, cfg_interval="0.1,0.7", cfg_channels="3")),
        (None, dict(steps=2, classes="1", latents=True, weights="model", t_shift="2")),
        (None, dict(steps=2, latents_only=True, labels="random")),
        (Diffusion(), dict(ddim=True, steps=2, eta=0.5)),
        (Diffusion(), dict(steps=2)),
    ],
    ids=str,
)  # fmt: skip
def test_options_left_out_are_the_set_s(tmp_path, process, options):
    """Catches: defaults compared with the set, and a set that goes on with others."""
    settings = begin(tmp_path, process or Flow(), **options)
    bare = SampleSettings(out=settings.out, device="cpu", precision="fp32", batch_size=2)
    said = dict.fromkeys(("out", "device", "precision", "batch_size"), "remove it")
    filled = unsaid_as_begun(bare, said)
    for name, value in options.items():
        assert getattr(filled, name) == value, name
    result = finish(sample(bare, said))
    done = SampleSet.open(result.path)
    assert done.complete
    assert done.done.all()


def test_what_was_said_is_compared(tmp_path):
    """Catches: a contradiction that is passed over, or a hint to remove what nobody typed."""
    settings = begin(tmp_path, steps=3, sde=True, wt="kl-eta", eta=0.25)
    for options, message in (
        (dict(steps=50), "with --steps 3, not 50"),
        (dict(wt="sigma"), "with --wt kl-eta, not sigma"),
        (dict(ode=True), "with --sde, not --ode"),
        (dict(seed=1), "with --seed 0, not 1"),
        (dict(weights="model"), "with --weights ema, not model"),
        (dict(cfg_scale=2.0), "with --cfg-scale 1.0, not 2.0"),
    ):
        (name,) = options
        said = {"out": "remove --out", name: f"remove --{name} from here"}
        with pytest.raises(UsageError, match=message) as failure:
            plan(SampleSettings(out=settings.out, device="cpu", **options), said)
        assert failure.value.hint == f"name another --out, or remove --{name} from here"


def test_without_a_list_all_was_said(tmp_path):
    """Catches: a caller in Python whose settings are replaced."""
    settings = begin(tmp_path, steps=3)
    other = replace(settings, steps=None)
    assert unsaid_as_begun(other, None) is other
    with pytest.raises(UsageError, match="steps 3, not 50"):
        finish(sample(other))
