"""A sample set on the disk."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from sitcli.commands.sample.stage import sample
from sitcli.errors import SitError
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from tests.tiny import finish


def test_a_set_without_its_facts_is_one_line(run: Path, tmp_path: Path) -> None:
    """Catches: a traceback from a sample set that another tool rewrote."""
    result = finish(sample(SampleSettings(checkpoint=run, out=tmp_path / "s", num=2, steps=1)))
    with h5py.File(result.path / "samples.h5", "r+") as file:
        del file["evaluations"]
    with pytest.raises(SitError, match="is damaged: no 'evaluations'"):
        SampleSet.open(result.path)
