"""What `sit train` is asked to do, checked before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.train.stage import train
from sitcli.errors import UsageError
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


def test_a_sample_set_is_no_place_for_a_run(store: Path, tmp_path: Path) -> None:
    """Catches: a folder that is both, and that no command reads any more."""
    write_samples(tmp_path / "set", pictures(2)[0])
    with pytest.raises(UsageError, match="is a sample set"):
        finish(train(train_settings(store, tmp_path / "set", steps=2)))
