"""Where weights come from, told from what lies in the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from sitcli import names
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.storage.tensors import read_tensors
from sitcli.weights.formats import FORMATS
from sitcli.weights.lineages import LINEAGES
from tests.weights.official_files import CONFIG, bring, equal, official, save, trainer


def test_lists_are_their_tables() -> None:
    """Catches: a lineage or format that no option names, or one that does nothing."""
    assert tuple(LINEAGES) == names.LINEAGES
    assert tuple(FORMATS) == names.EXPORT_FORMATS


def test_a_trainers_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    """Catches: a Namespace refused; the model taken for the average; path or prediction lost; a
    step that is forgotten."""
    args = dict(path_type="GVP", prediction="score", loss_weight="velocity", model="SiT-Mi/2")
    content = trainer(**args)
    run = bring(save(tmp_path / "0400000.pt", content), tmp_path / "a")
    assert run.step == 400_000
    assert run.process == Flow(interpolant="gvp", prediction="score", loss_weight="velocity")
    assert run.kinds == ["model", "ema"]
    assert equal(run.weights("model"), content["model"])
    assert equal(run.weights("ema"), content["ema"])
    # fast-DiT's, from a wrapper of DDP's; a size of its own says nothing.
    content = trainer(model="DiT-Tiny/2", global_batch_size=256, num_classes=5)
    content["ema"] = {f"module.{key}": value for key, value in content["ema"].items()}
    run = bring(save(tmp_path / "x.pt", content), tmp_path / "b")
    assert run.meta["lineage"] == "official-dit"
    assert run.process == Diffusion()


def test_repas_projectors_are_set_aside(tmp_path: Path) -> None:
    """Catches: REPA's weights refused for their projectors, or run in the official direction."""
    state = official(dataclasses.replace(CONFIG, out_channels=4))
    extra = {"projectors.0.0.weight": torch.ones(3, 3)}
    run = bring(save(tmp_path / "last.pt", {**state, **extra}), tmp_path / "run")
    assert (run.meta["lineage"], run.meta["time_convention"]) == ("repa", "paper")
    assert run.meta["guided_channels"] == "all"
    assert equal(run.weights("ema"), state)
    assert equal(read_tensors(run.path / "set-aside.safetensors"), extra)
