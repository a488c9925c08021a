"""What `sit train` is asked to do, checked before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.train import job
from sitcli.commands.train.stage import train
from sitcli.errors import UsageError
from sitcli.machine.world import World
from tests.tiny import finish, pictures, train_settings, write_samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model="SiT-S/3"), "patch 3 does not divide"),
        (dict(model="SiT-Q/2"), "no model is called"),
        (dict(model="DiT-S/2", interpolant="gvp"), "--interpolant is an option of SiT"),
        (dict(betas="cosine"), "--betas is an option of DiT"),
        (dict(posterior="mode"), "--posterior has no effect"),
        (dict(variance="fixed-small"), "--variance is an option of DiT"),
        (dict(batch_size=9, accumulate=2), "not divisible"),
        (dict(heads=3), "heads do not divide"),
    ],
)
def test_bad_options_touch_nothing(store: Path, tmp_path: Path, options, message) -> None:
    """Catches: a bad option found only after files were written."""
    with pytest.raises(UsageError, match=message):
        finish(train(train_settings(store, tmp_path / "run", steps=2, **options)))
    assert not (tmp_path / "run").exists()


def test_a_torch_that_loses_gradients_compiles_no_stage_3(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: --zero 3 whose compiled blocks never learn, without a word."""
    monkeypatch.setattr(job, "compiles_stage_3", lambda device: False)
    monkeypatch.setattr(job, "resolve_compile", lambda name, device, flops: name != "off")
    world = World(0, 1)

    def compiled(**options) -> bool:
        return job.prepare(train_settings(store, tmp_path / "run", **options), world).compiled

    with pytest.raises(UsageError, match="get no gradients"):
        compiled(zero="3", compile="on")
    assert not compiled(zero="3", compile="auto")
    assert compiled(zero="1", compile="on")


def test_a_sample_set_is_no_place_for_a_run(store: Path, tmp_path: Path) -> None:
    """Catches: a folder that is both, and that no command reads any more."""
    write_samples(tmp_path / "set", pictures(2)[0])
    with pytest.raises(UsageError, match="is a sample set"):
        finish(train(train_settings(store, tmp_path / "set", steps=2)))
