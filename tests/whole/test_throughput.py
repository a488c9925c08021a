"""What makes a training faster or smaller changes nothing but that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sitcli.commands.train.stage import train
from sitcli.engine.engine import compiles_stage_3
from sitcli.errors import UsageError
from sitcli.model.compile import can_compile
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from tests.tiny import finish, losses, train_settings

LACKS = can_compile(torch.device("cpu"))


needs_compiler = pytest.mark.skipif(LACKS is not None, reason=str(LACKS))


def same_weights(a: Path, b: Path) -> bool:
    kept = [open_checkpoint(RunDir(run).newest()).weights("model") for run in (a, b)]
    return all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())


@pytest.mark.parametrize("zero", ["1", "3"])
def test_recomputed_blocks_change_no_bit(tmp_path: Path, store: Path, zero: str) -> None:
    """Catches: activation checkpointing that DeepSpeed's hooks do not go with."""
    for blocks in ("none", "all", "every-2"):
        run = train_settings(store, tmp_path / blocks, steps=3, zero=zero, checkpoint_blocks=blocks)
        finish(train(run))
        assert losses(tmp_path / blocks) == losses(tmp_path / "none")
        assert same_weights(tmp_path / blocks, tmp_path / "none")


@needs_compiler
@pytest.mark.parametrize("zero", ["1", pytest.param("3", marks=pytest.mark.slow)])
def test_compiled_blocks_train_alike(tmp_path: Path, store: Path, zero: str) -> None:
    """Catches: blocks compiled before DeepSpeed puts its hooks on them, other keys in what is
    saved, a compilation in every step, or block weights that get no gradients."""
    if zero == "3" and not compiles_stage_3(torch.device("cpu")):
        pytest.skip("this torch does not compile stage 3")
    for compile in ("off", "on"):
        run = train_settings(store, tmp_path / compile, steps=3, zero=zero, compile=compile)
        finish(train(run))
    for eager, compiled in zip(losses(tmp_path / "off"), losses(tmp_path / "on"), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4)
    entries = RunDir(tmp_path / "on").read_metrics()
    assert [entry["recompiles"] for entry in entries] == [0, 0, 0]
    newest = [open_checkpoint(RunDir(tmp_path / name).newest()) for name in ("off", "on")]
    assert newest[0].weights("ema").keys() == newest[1].weights("ema").keys()
    # All biases begin at 0, and those in the blocks move from the third step on.
    for checkpoint in newest:
        weights = checkpoint.weights("model")
        assert all(w.any() for key, w in weights.items() if key.endswith(".bias"))


def test_fp16_goes_on_with_its_loss_scale(tmp_path: Path, store: Path) -> None:
    """Catches: a resumed fp16 run that begins with the first scale again: other skipped steps."""
    # Few log lines: each measures a matrix product, and this takes seconds in fp16.
    more = dict(precision="fp16", depth=1, log_every=4)
    finish(train(train_settings(store, tmp_path / "whole", steps=4, **more)))
    finish(train(train_settings(store, tmp_path / "parts", steps=2, **more)))
    newest = RunDir(tmp_path / "parts").newest()
    assert open_checkpoint(newest).meta["scaler"] == {"scale": 65536.0, "good_steps": 2}
    finish(train(train_settings(store, tmp_path / "parts", steps=4, **more)))
    states = [open_checkpoint(RunDir(tmp_path / name).newest()) for name in ("whole", "parts")]
    assert states[0].meta["scaler"] == states[1].meta["scaler"]
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_misspelt_block_choice(tmp_path: Path, store: Path) -> None:
    """Catches: a misspelling found after the run directory is made, or by a traceback."""
    with pytest.raises(UsageError, match="--checkpoint-blocks: 'every' is not one of"):
        finish(train(train_settings(store, tmp_path / "run", steps=2, checkpoint_blocks="every")))
    assert not (tmp_path / "run").exists()
