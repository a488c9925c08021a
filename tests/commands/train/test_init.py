"""--init: a new run that begins from other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sitcli.commands.export import export
from sitcli.commands.import_weights import import_weights
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.train.job import prepare
from sitcli.commands.train.resume import read_config
from sitcli.commands.train.stage import plan, train
from sitcli.core.diffusion import Diffusion
from sitcli.errors import SitError, UsageError
from sitcli.events import Note
from sitcli.machine.world import World
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.meta import REVERSED
from sitcli.settings.tools import InspectSettings
from sitcli.settings.train import TrainSettings
from sitcli.settings.weights import ExportSettings, ImportSettings
from sitcli.storage.files import hash_file
from sitcli.weights.start import KEPT
from tests.tiny import finish, losses, make_run, make_store, train_settings

ALONE = World(0, 1)


@pytest.fixture
def source(store: Path, tmp_path: Path) -> Path:
    options = dict(interpolant="gvp", qk_norm=True, mlp="swiglu")
    finish(train(train_settings(store, tmp_path / "source", steps=2, **options)))
    return tmp_path / "source"


def settings_of(store: Path, source: Path, name: str = "new", **options) -> TrainSettings:
    common = dict(latents=[store], init=str(source), out=source.parent / name, device="cpu")
    common |= dict(batch_size=8, steps=1, sample_every=0, log_every=1, precision="fp32")
    return TrainSettings(**common | options)


def test_the_network_and_the_objective_are_the_source_s(store: Path, source: Path) -> None:
    """Catches: defaults in the place of what the source is, or weights that begin elsewhere."""
    job = prepare(settings_of(store, source), ALONE)
    before = open_checkpoint(source)
    assert (job.config, job.process) == (before.config, before.process)
    assert [fate.what for fate in job.start.fates] == [KEPT]
    finish(train(settings_of(store, source, lr=0.0, ema=0.5)))
    after = open_checkpoint(source.parent / "new")
    for which in ("model", "ema"):
        weights = after.weights(which)
        # lr 0: the first update leaves the weights where they began, at the source's average.
        assert all(torch.equal(weights[k], v) for k, v in before.weights("ema").items())
    assert after.meta["init"]["sha256"] == hash_file(before.path / "ema.safetensors")
    assert after.meta["init"]["path"] == str(before.path.resolve())
    config = read_config(source.parent / "new" / "config.yaml")
    text = (source.parent / "new" / "config.yaml").read_text()
    assert f"sha256 {after.meta['init']['sha256']}" in text.splitlines()[0]
    assert (config["init"], config["interpolant"], config["mlp"]) == (str(source), "gvp", "swiglu")
    facts = dict(finish(inspect(InspectSettings(path=source.parent / "new"))).tables[0].rows)
    assert facts["begun from"].startswith(f"{before.path.resolve()}, step 2, ema weights")
    # The last weights, of one step of it.
    first = prepare(settings_of(store, before.path, "other", weights="model"), ALONE)
    name = "blocks.0.attn.qkv.weight"
    value = first.start.values[name](torch.zeros(1))
    assert torch.equal(value, before.weights("model")[name])


def test_it_goes_on_without_its_source(store: Path, source: Path) -> None:
    """Catches: a run that begins again from its source, or cannot go on once that is gone."""
    finish(train(settings_of(store, source, "whole", steps=4)))
    finish(train(settings_of(store, source, "parts", steps=2)))
    source.rename(source.parent / "gone")
    finish(train(settings_of(store, source, "parts", steps=4)))
    parts = source.parent / "parts"
    finish(train(TrainSettings(out=parts, steps=5, device="cpu")))
    assert losses(parts)[:-1] == losses(source.parent / "whole")
    assert open_checkpoint(parts).meta["init"]["step"] == 2


def test_what_becomes_of_the_parts_is_said(store: Path, source: Path, tmp_path: Path) -> None:
    """Catches: a label table or an objective that changes, and nobody says so."""
    other = make_store(tmp_path / "other.h5", classes=False).path
    settings = settings_of(other, source, prediction="noise", rope=True)
    table = plan(settings).tables[0]
    notes = [event.text for event in train(settings) if isinstance(event, Note)]
    assert notes[0] == f"begun from {open_checkpoint(source).path.resolve()}, step 2, ema weights:"
    for words in ("the null class alone", "RoPE", "noise prediction, loss weight none, was gvp"):
        assert sum(words in " ".join(row) for row in table.rows) == 1
        assert sum(words in note for note in notes) == 1


def test_networks_of_another_shape_are_refused(store: Path, source: Path) -> None:
    """Catches: weights cut to fit, or a traceback of torch's."""
    for options in (dict(depth=3), dict(width=64), dict(mlp="gelu"), dict(model="SiT-Ti/4")):
        said = dict.fromkeys({**options, "init": source, "out": source}, "")
        with pytest.raises(UsageError, match=r"--init .* and the new network has") as failure:
            finish(train(settings_of(store, source, **options), said))
        assert failure.value.hint.startswith("leave --model, --depth")
        assert not (source.parent / "new").exists()


@pytest.mark.parametrize("form", ["pt", "bare", "safetensors", "imported"])
def test_files_that_import_takes(store: Path, tmp_path: Path, form: str) -> None:
    """Catches: a file of the other direction of time that begins as another function.

    The loss of the first step, before any update, is that of the source's own network.
    """
    source = tmp_path / "source"
    finish(train(train_settings(store, source, steps=3, lr=0.01, ema=0.0, ema_warmup=False)))
    file = tmp_path / ("sit-w.safetensors" if form == "safetensors" else "sit-w.pt")
    format_ = "safetensors" if form == "safetensors" else "official-sit"
    finish(export(ExportSettings(checkpoint=source, out=file, format=format_)))
    if form == "imported":
        (tmp_path / "sit-w.pt.sit.safetensors").unlink()
        settings = ImportSettings(weights=file, out_dir=tmp_path / "in", vae="pixels", heads=2)
        finish(import_weights(settings))
        file = tmp_path / "in"
        assert open_checkpoint(file).meta["time_convention"] == REVERSED
    elif form == "bare":  # it does not tell its autoencoder
        (tmp_path / "sit-w.pt.sit.safetensors").unlink()
        with pytest.raises(UsageError, match="takes latents of 3 channels") as failure:
            finish(train(settings_of(store, file)))
        assert failure.value.hint.startswith("import it first, then begin from that: sit import")
        return
    common = dict(lr=0.0, compile="off")
    finish(train(settings_of(store, source, "of-run", **common)))
    finish(train(settings_of(store, file, "of-file", **common)))
    (_, ours, _), (_, theirs, _) = losses(tmp_path / "of-file")[0], losses(tmp_path / "of-run")[0]
    # Float32 sums of another order, of the rotated layer.
    assert ours == pytest.approx(theirs, rel=1e-4 if form == "imported" else 1e-7)


def test_dit_begins_dit(store: Path, tmp_path: Path) -> None:
    """Catches: betas, variance or the second half of the channels lost on the way."""
    source = make_run(tmp_path, process=Diffusion(betas="cosine"))
    config = open_checkpoint(source).config
    side = config.input_size
    data = make_store(tmp_path / "s.h5", side=side).path
    job = prepare(settings_of(data, source), ALONE)
    assert (job.process.betas, job.process.variance) == ("cosine", "learned-range")
    assert job.config.out_channels == 2 * job.config.channels


def test_sources_that_cannot_be_had(store: Path, tmp_path: Path) -> None:
    """Catches: a traceback, or an option without effect."""
    with pytest.raises(SitError, match="there is no"):
        finish(train(settings_of(store, tmp_path / "nothing")))
    with pytest.raises(UsageError, match="--weights has no effect without --init"):
        finish(train(train_settings(store, tmp_path / "run", weights="model")))


def test_frozen_parameters_stay(store: Path, source: Path) -> None:
    """Catches: a frozen layer that moves, one that is trained and does not, or a resume that
    trains all of it."""
    for steps in (2, 3):
        finish(train(settings_of(store, source, freeze=["blocks.0"], lr=0.01, steps=steps)))
    before, after = open_checkpoint(source), open_checkpoint(source.parent / "new")
    old = before.weights("ema")
    for which in ("model", "ema"):
        weights = after.weights(which)
        same = {name for name in weights if torch.equal(weights[name], old[name])}
        assert {name for name in weights if name.startswith("blocks.0.")} <= same
        assert "blocks.1.attn.qkv.weight" not in same
    assert not any(name.startswith("blocks.0.") for name in after.meta["trained"])
    assert (
        "sound"
        in finish(inspect(InspectSettings(path=after.path, verify=True))).summary["verified"]
    )
