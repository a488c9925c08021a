"""Where weights come from, told from what lies in the file."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from sitcli import names
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.storage.tensors import read_tensors
from sitcli.weights.formats import FORMATS
from sitcli.weights.lineages import LINEAGES, Clues, recognise
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


def clues(name: str = "x.pt", *, keys=("pos_embed",), learned_sigma: bool = True, **args) -> Clues:
    """args: the trainer's, if there were any."""
    told = Namespace(**args) if args else None
    return Clues(name=name, keys=keys, args=told, learned_sigma=learned_sigma)


@pytest.mark.parametrize(
    ("found", "model", "lineage"),
    [
        (clues(path_type="Linear", prediction="velocity"), None, "official-sit"),
        (clues(global_batch_size=256, num_classes=1000), None, "official-dit"),
        (clues(path_type="linear", proj_coeff=0.5), None, "repa"),
        (clues(enc_type="dinov2", global_batch_size=256, num_classes=10), None, "repa"),
        (clues(keys=("pos_embed", "projectors.0.0.weight")), None, "repa"),
        (clues("SiT-XL-2-256x256.pt"), None, "official-sit"),
        (clues("DiT-XL-2-256x256.pt"), None, "official-dit"),
        (clues("dit_small.pt", learned_sigma=False), None, "official-dit"),
        (clues("sit-mine.pt", learned_sigma=False), None, "official-sit"),
        (clues(), "SiT-XL/2", "official-sit"),
        (clues(learned_sigma=False), "DiT-XL/2", "official-dit"),
        # The user knows better than a name, and the arguments better than both.
        (clues("DiT-XL-2.pt"), "SiT-XL/2", "official-sit"),
        (clues("DiT-XL-2.pt", path_type="Linear"), None, "official-sit"),
    ],
)
def test_clues_tell_the_lineage(found: Clues, model: str | None, lineage: str) -> None:
    """Catches: weights run under another convention of time, whose samples are noise."""
    assert recognise(found, lineage=None, why="", model=model)[0] == lineage


@pytest.mark.parametrize(
    ("found", "model", "message"),
    [
        (clues(), None, "cannot tell whether"),
        (clues("transit-1.pt"), None, "cannot tell whether"),
        (clues(learned_sigma=False), "SiT-XL/2", "opposite directions"),
        (clues(path_type="Linear"), "DiT-XL/2", "--model is a DiT"),
        (clues(global_batch_size=1), "SiT-XL/2", "--model is a SiT"),
    ],
)
def test_what_nothing_tells_is_not_guessed(found: Clues, model: str | None, message: str) -> None:
    """Catches: a guess between two networks that look alike, or a contradiction that is ignored."""
    with pytest.raises(UsageError, match=message):
        recognise(found, lineage=None, why="", model=model)


def test_what_was_said_is_believed() -> None:
    """Catches: --lineage that a clue overrides."""
    assert recognise(clues(path_type="Linear"), lineage="repa", why="--lineage", model=None) == (
        "repa", "--lineage",
    )  # fmt: skip
    with pytest.raises(UsageError, match="--model is a DiT"):
        recognise(clues(), lineage="repa", why="--lineage", model="DiT-XL/2")


@pytest.mark.parametrize(
    ("args", "options", "process"),
    [
        ({}, {}, Flow()),
        (dict(path_type="VP", prediction="score"), {}, Flow(interpolant="vp", prediction="score")),
        (dict(path_type="cosine", prediction="v"), {}, Flow(interpolant="gvp")),
        (dict(path_type="GVP"), dict(interpolant="linear"), Flow()),
        (dict(loss_weight="velocity"), dict(prediction="noise"),
         Flow(prediction="noise", loss_weight="velocity")),
    ],
)  # fmt: skip
def test_the_trainers_arguments_are_the_process(args, options, process: Flow) -> None:
    """Catches: a path or prediction of the trainer's that is lost, or that beats the user's."""
    row = LINEAGES["official-sit"]
    given = dict(interpolant=None, prediction=None) | options
    assert row.process(CONFIG, Namespace(**args), *given.values()) == process


def test_arguments_that_sit_does_not_know_are_refused() -> None:
    """Catches: an unknown path taken for the first known one."""
    with pytest.raises(SitError, match="path_type spiral"):
        LINEAGES["official-sit"].process(CONFIG, Namespace(path_type="spiral"), None, None)
    with pytest.raises(UsageError, match="--interpolant is for SiT"):
        LINEAGES["official-dit"].process(CONFIG, None, "gvp", None)


@pytest.mark.parametrize(("out", "variance"), [(8, "learned-range"), (4, "fixed-large")])
def test_dits_variance_is_told_by_its_channels(out: int, variance: str) -> None:
    """Catches: a fixed variance read from channels that are not there."""
    config = dataclasses.replace(CONFIG, out_channels=out)
    assert LINEAGES["official-dit"].process(config, None, None, None) == Diffusion(
        variance=variance
    )
