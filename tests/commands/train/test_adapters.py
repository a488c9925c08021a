"""--lora: what is trained, saved, resumed, sampled and exported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sitcli.commands.export import export
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.train.adapters import adapter_sizes, add_adapters
from sitcli.commands.train.stage import train
from sitcli.errors import SitError, UsageError
from sitcli.model.lora import file_name, is_adapter
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.settings.tools import InspectSettings
from sitcli.settings.weights import ExportSettings
from sitcli.storage.tensors import read_tensors, write_tensors
from tests.model.networks import TINY, filled
from tests.tiny import draw, finish, losses, make_store, train_settings

pytest.importorskip("peft")


@pytest.fixture
def source(store: Path, tmp_path: Path) -> Path:
    finish(train(train_settings(store, tmp_path / "source", steps=2)))
    return tmp_path / "source"


def tuned(source: Path, store: Path, name: str, **options) -> Path:
    out = source.parent / name
    settings = train_settings(store, out, init=str(source), lora=2, model=None, **options)
    finish(train(settings))
    return out


def test_names_are_those_of_the_network():
    """Catches: names foretold otherwise than peft makes them."""
    network = filled(TINY)
    foretold = adapter_sizes(TINY, 2)
    add_adapters(network, 2)
    made = {file_name(name): p.numel() for name, p in network.named_parameters()}
    assert {name: size for name, size in made.items() if is_adapter(name)} == foretold


def test_checkpoints_are_small_and_whole_together(source: Path, store: Path) -> None:
    """Catches: a checkpoint of all weights, a base that is trained, or adapters that are not."""
    run = tuned(source, store, "run", steps=3)
    checkpoint = open_checkpoint(run)
    base, kept = checkpoint.base(), read_tensors(checkpoint.path / "model.safetensors")
    assert all(torch.equal(base[k], v) for k, v in open_checkpoint(source).weights("ema").items())
    assert all(is_adapter(name) for name in kept)
    assert set(kept) == set(checkpoint.meta["trained"])
    assert any(tensor.any() for name, tensor in kept.items() if "lora_B" in name)
    weights = checkpoint.weights("model")
    changed = {name for name in weights if not torch.equal(weights[name], base[name])}
    assert changed == {name.replace(".lora_B", "") for name in kept if "lora_B" in name}
    assert checkpoint.meta["format_version"] == 4
    result = finish(inspect(InspectSettings(path=run, verify=True)))
    assert "sound" in result.summary["verified"]


@pytest.mark.parametrize("zero", ["0", "1", "2", "3"])
def test_going_on_is_as_if_never_stopped(source: Path, store: Path, zero: str) -> None:
    """Catches: adapters, their average or their moments lost or misplaced by a resume."""
    whole = tuned(source, store, "whole", steps=4, zero=zero)
    for steps in (2, 4):
        parts = tuned(source, store, "parts", steps=steps, zero=zero, save_every=2)
    assert losses(parts) == losses(whole)
    for which in ("model", "ema"):
        ours, theirs = (open_checkpoint(run).weights(which) for run in (parts, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_new_classes_are_trained_beside_the_adapters(source: Path, tmp_path: Path) -> None:
    """Catches: a label table that begins anew and is never trained."""
    store = make_store(tmp_path / "other.h5", classes=False).path
    run = tuned(source, store, "run", steps=2, train_only=["final_layer"], freeze=["blocks.0"])
    trained = open_checkpoint(run).meta["trained"]
    table = "y_embedder.embedding_table.weight"
    assert not any(name.startswith("blocks.0.") for name in trained)
    assert "final_layer.linear.weight" in trained
    assert any(name.startswith("blocks.1.") and is_adapter(name) for name in trained)
    assert table not in trained  # the null class alone, which is the source's


def test_samples_and_exports_are_of_the_whole(source: Path, store: Path, tmp_path: Path) -> None:
    """Catches: samples of the base, or an export that lacks the adapters or asks for them."""
    run = tuned(source, store, "run", steps=3, lr=0.05, ema=0.0, ema_warmup=False)
    draw(run, "tuned", num=2)
    draw(source, "plain", num=2)
    for name in ("w.safetensors", "w.pt"):
        format_ = "safetensors" if name == "w.safetensors" else "official-sit"
        finish(export(ExportSettings(checkpoint=run, out=tmp_path / name, format=format_)))
    weights = open_checkpoint(run).weights("ema")
    exported = read_tensors(tmp_path / "w.safetensors")
    assert all(torch.equal(exported[name], weights[name]) for name in weights)


def test_a_base_that_is_not_there(source: Path, store: Path) -> None:
    """Catches: adapters added to other weights than they were trained on."""
    run = tuned(source, store, "run", steps=2)
    base = RunDir(run).base
    tensors = read_tensors(base)
    base.unlink()
    with pytest.raises(SitError, match=r"there is no .*base.safetensors"):
        open_checkpoint(run).weights("ema")
    write_tensors(base, {name: 2 * tensor for name, tensor in tensors.items()})
    with pytest.raises(SitError, match="is not what step-0000002 was trained on"):
        open_checkpoint(run).weights("ema")


def test_options_that_do_not_fit(source: Path, store: Path, tmp_path: Path, monkeypatch) -> None:
    """Catches: adapters of random weights, averages of whole networks, or a traceback."""
    with pytest.raises(UsageError, match="--lora has no effect without --init"):
        finish(train(train_settings(store, tmp_path / "run", lora=2)))
    with pytest.raises(UsageError, match="--power-ema averages whole networks"):
        tuned(source, store, "run", power_ema=True)
    with pytest.raises(UsageError, match="the layers have 32 channels"):
        finish(train(train_settings(store, tmp_path / "r", init=str(source), lora=32, model=None)))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SitError, match="--lora needs peft") as failure:
        tuned(source, store, "run")
    assert failure.value.hint == "pip install 'sitcli[lora]'"
