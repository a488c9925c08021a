"""Settings of a run: resolved against stores, and config.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from sitcli.commands.train.job import prepare
from sitcli.commands.train.resume import read_config, write_config
from sitcli.commands.train.run_settings import as_plain, resolve, run_name
from sitcli.commands.train.stage import train
from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import open_stores
from sitcli.latents.store import LatentStore
from sitcli.machine.world import World
from sitcli.settings.train import TrainSettings
from sitcli.storage.rows import Rows
from tests.tiny import finish, losses, make_store, train_settings

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
    """Catches: mirrored latents left unused without a word, or read where there are none."""
    store = open_stores(stores[::order])
    with pytest.raises(UsageError, match=r"a\.h5 holds mirrored .*b\.h5 none") as failure:
        resolve(TrainSettings(), store, CPU)
    assert "--no-flip" in failure.value.hint
    assert resolve(TrainSettings(flip=False), store, CPU).flip is False
    assert resolve(TrainSettings(), LatentStore.open(stores[0]), CPU).flip is True
    assert resolve(TrainSettings(), LatentStore.open(stores[1]), CPU).flip is False


def test_several_stores_in_config_yaml(tmp_path):
    """Catches: a config.yaml that holds Python objects, or that --config does not take back."""
    settings = TrainSettings(latents=[Path("a.h5"), Path("with space/b.h5")], model="SiT-Ti/2")
    write_config(tmp_path / "config.yaml", settings)
    document = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert document["train"]["latents"] == ["a.h5", "with space/b.h5"]
    assert read_config(tmp_path / "config.yaml") == as_plain(settings)


def test_where_the_stores_lie_is_not_in_the_run_s_name(stores):
    """Catches: a run that is begun anew because its store was moved or named otherwise."""
    store = LatentStore.open(stores[0])
    settings = resolve(TrainSettings(), store, CPU)
    moved = replace(settings, latents=[Path("elsewhere.h5")])
    other = LatentStore.open(stores[1])
    assert run_name(settings, store.fingerprint) == run_name(moved, store.fingerprint)
    assert run_name(settings, store.fingerprint) != run_name(settings, other.fingerprint)


def test_settings_that_change_the_run_are_refused(store: Path, tmp_path: Path) -> None:
    """Catches: a resumed run silently continued with another objective."""
    finish(train(train_settings(store, tmp_path / "run", steps=2)))
    with pytest.raises(UsageError, match="--interpolant linear, not gvp"):
        finish(train(train_settings(store, tmp_path / "run", steps=4, interpolant="gvp")))
    with pytest.raises(UsageError, match="--seed 0, not 1"):
        finish(train(train_settings(store, tmp_path / "run", steps=4, seed=1)))
    other = make_store(tmp_path / "other.h5", number=30, classes=False).path
    with pytest.raises(UsageError, match="has not the classes"):
        finish(train(train_settings(other, tmp_path / "run", steps=4)))
    assert losses(tmp_path / "run")[-1][0] == 2


def test_default_name_depends_on_what_is_learned(store: Path) -> None:
    """Catches: another setting landing in an old run's directory, or the same one in a new one."""
    from sitcli.latents.store import LatentStore

    opened = LatentStore.open(store)

    def name_of(**more) -> str:
        s = train_settings(store, None, **{"steps": 5, **more})
        return run_name(resolve(s, opened, torch.device("cpu")), opened.fingerprint)

    name = name_of()
    assert name == name_of(steps=9, keep=1) == name_of(interpolant="linear")
    assert len({name, name_of(lr=2e-3), name_of(block="adaln"), name_of(interpolant="gvp")}) == 4
    # The learning rate is a function of the steps.
    assert name_of(schedule="cosine") != name_of(schedule="cosine", steps=9)
    assert name.startswith("SiT-Mi-4-linear-velocity-")
    chain = name_of(model="DiT-Mi/4", betas="cosine")
    assert chain.startswith("DiT-Mi-4-cosine-noise-")
    assert chain != name_of(model="DiT-Mi/4", betas="cosine", variance="fixed-small")


@pytest.mark.parametrize("text", ["train: [1,", "- 1", "train:"])
def test_a_damaged_config_is_one_line(store: Path, tmp_path: Path, text: str) -> None:
    """Catches: a parser's report of many lines, or a traceback."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(SitError, match=r"config.yaml is damaged[^\n]*$"):
        prepare(train_settings(store, tmp_path / "run"), World(0, 1))
