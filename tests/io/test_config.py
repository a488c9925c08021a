"""Settings of a run: resolved against stores, and config.yaml."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from sitcli.commands.train.run_settings import (
    as_plain,
    check_same,
    read_config,
    resolve,
    run_name,
    write_config,
)
from sitcli.errors import UsageError
from sitcli.latents.joined import open_stores
from sitcli.latents.store import LatentStore
from sitcli.settings.train import TrainSettings
from sitcli.storage.rows import Rows
from tests.tiny import make_store

CPU = torch.device("cpu")


@pytest.fixture
def stores(tmp_path):
    """Two stores of which only the first has flips."""
    make_store(tmp_path / "a.h5", number=9)
    make_store(tmp_path / "b.h5", number=12)
    Rows(tmp_path / "b.h5").set_attrs(flips=False)
    return [tmp_path / "a.h5", tmp_path / "b.h5"]


@pytest.mark.parametrize("order", [1, -1])
def test_flips_of_some_stores_only(stores, order):
    """Fault: mirrored latents left unused without a word, or read where there are none."""
    store = open_stores(stores[::order])
    with pytest.raises(UsageError, match=r"a\.h5 holds mirrored .*b\.h5 none") as failure:
        resolve(TrainSettings(), store, CPU)
    assert "--no-flip" in failure.value.hint
    assert resolve(TrainSettings(flip=False), store, CPU).flip is False
    assert resolve(TrainSettings(), LatentStore.open(stores[0]), CPU).flip is True
    assert resolve(TrainSettings(), LatentStore.open(stores[1]), CPU).flip is False


def test_several_stores_in_config_yaml(tmp_path):
    """Fault: a config.yaml that holds Python objects, or that --config does not take back."""
    settings = TrainSettings(latents=[Path("a.h5"), Path("with space/b.h5")], model="SiT-Ti/2")
    write_config(tmp_path / "config.yaml", settings)
    document = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert document["train"]["latents"] == ["a.h5", "with space/b.h5"]
    assert read_config(tmp_path / "config.yaml") == as_plain(settings)


@pytest.mark.parametrize("latents", ["a.h5", ["a.h5"], None], ids=str)
def test_the_config_of_an_older_run_is_read(tmp_path, latents):
    """Fault: a run whose config.yaml names one store as text that cannot go on."""
    old = as_plain(TrainSettings()) | {"latents": latents}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train": old}))
    check_same(tmp_path / "config.yaml", TrainSettings(latents=[Path("elsewhere/a.h5")]))


def test_where_the_stores_lie_is_not_in_the_run_s_name(stores):
    """Fault: a run that is begun anew because its store was moved or named otherwise."""
    store = LatentStore.open(stores[0])
    settings = resolve(TrainSettings(), store, CPU)
    moved = replace(settings, latents=[Path("elsewhere.h5")])
    assert run_name(settings, store) == run_name(moved, store)
    assert run_name(settings, store) != run_name(settings, LatentStore.open(stores[1]))
