"""Every block design through the stages: it trains, its checkpoint samples, and says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from sitcli import names
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.sample.stage import sample
from sitcli.commands.train.run_settings import run_name
from sitcli.commands.train.stage import plan, train
from sitcli.errors import UsageError
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.settings.tools import InspectSettings
from tests.tiny import finish, losses, train_settings


@pytest.mark.parametrize("block", names.BLOCKS)
def test_every_block_trains_and_samples(store: Path, tmp_path: Path, block: str) -> None:
    """Catches: a design that the options accept but that does not learn, or whose checkpoint is
    loaded as another one."""
    options = dict(block=block, steps=40, save_every=40, lr=3e-3)
    assert plan(train_settings(store, tmp_path / "run", **options)).data["block"] == block
    finish(train(train_settings(store, tmp_path / "run", **options)))
    curve = [loss for _, loss, _ in losses(tmp_path / "run")]
    assert np.mean(curve[-10:]) < 0.85 * np.mean(curve[:5])
    assert open_checkpoint(tmp_path / "run").config.block == block
    drawn = SampleSettings(
        checkpoint=tmp_path / "run", out=tmp_path / "drawn", num=3, steps=2, device="cpu"
    )
    samples = SampleSet.open(finish(sample(drawn)).path)
    assert samples.complete
    assert len(np.unique(samples.images.reshape(3, -1), axis=0)) == 3


def test_block_is_part_of_the_name(store: Path) -> None:
    """Catches: runs of two designs that only a hash tells apart, or a default that is spelt out."""
    opened = LatentStore.open(store)
    name = run_name(train_settings(store, None, block="in-context", steps=5), opened.fingerprint)
    assert name.startswith("SiT-Mi-4-in-context-")
    assert "adaln" not in run_name(train_settings(store, None, steps=5), opened.fingerprint)


def test_inspect_names_the_block(store: Path, tmp_path: Path) -> None:
    """Catches: two checkpoints of different designs described alike."""
    finish(train(train_settings(store, tmp_path / "run", block="cross-attention", steps=1)))
    result = finish(inspect(InspectSettings(path=tmp_path / "run", verify=True)))
    network = dict(result.tables[0].rows)["network"]
    assert network.startswith("2 cross-attention blocks of width 32")


def test_another_block_does_not_go_on(store: Path, tmp_path: Path) -> None:
    """Catches: a run resumed with another network, one of a version without `--block` included."""
    finish(train(train_settings(store, tmp_path / "run", steps=1)))
    with pytest.raises(UsageError, match="--block adaln-zero, not adaln"):
        finish(train(train_settings(store, tmp_path / "run", steps=2, block="adaln")))
    config = RunDir(tmp_path / "run").config
    older = yaml.safe_load(config.read_text())
    del older["train"]["block"]
    config.write_text(yaml.safe_dump(older))
    with pytest.raises(UsageError, match="--block adaln-zero, not adaln"):
        finish(train(train_settings(store, tmp_path / "run", steps=2, block="adaln")))
    finish(train(train_settings(store, tmp_path / "run", steps=2)))
