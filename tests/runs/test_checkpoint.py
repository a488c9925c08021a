"""A checkpoint that is opened: damaged files and missing ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sitcli.commands.sample.stage import plan, sample
from sitcli.core.flow import Flow
from sitcli.errors import SitError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.sample import SampleSettings
from tests.tiny import CONFIG, draw, finish, make_run, random_network, write_meta

CPU = torch.device("cpu")


def rewrite(run: Path, **facts) -> None:
    """Change facts of the run's meta.json; None takes one out."""
    file = open_checkpoint(run).path / "meta.json"
    meta = json.loads(file.read_text()) | facts
    write_meta(file, {key: value for key, value in meta.items() if value is not None})


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, 8, 8), torch.rand(4), torch.arange(4)


def test_a_run_is_its_newest_step_and_a_step_is_itself(run: Path) -> None:
    """Catches: facts or weights of another step than the one that was named."""
    checkpoint = open_checkpoint(run)
    assert (checkpoint.step, checkpoint.path.name) == (7, "step-0000007")
    assert open_checkpoint(checkpoint.path) == checkpoint
    assert checkpoint.config == CONFIG
    assert checkpoint.process == Flow()
    assert checkpoint.image_size == (8, 8)
    assert checkpoint.trainable
    later = run / "step-0000009"
    checkpoint.path.rename(later)
    rewrite(later, step=9)
    assert (open_checkpoint(run).step, open_checkpoint(later).step) == (9, 9)


def test_its_network_is_the_one_that_was_saved(run: Path) -> None:
    """Catches: a weight that is lost or doubled while the modulations become one product, dropout
    left on, or gradients that nobody asks for."""
    x, t, y = inputs()
    network = open_checkpoint(run).network("ema", CPU)
    with torch.no_grad():
        expected = random_network(CONFIG).eval()(x, t, y)
    found = network(x, t, y)
    assert not found.requires_grad
    # One product instead of several: sums of 32 terms in float32 in another order.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_products_of_the_blocks_alone_take_the_dtype(run: Path) -> None:
    """Catches: embeddings or the final layer in bf16, which autocast keeps in float32."""
    network = open_checkpoint(run).network("ema", CPU, dtype=torch.bfloat16)
    parameters = dict(network.named_parameters())
    assert parameters["blocks.0.attn.qkv.weight"].dtype == torch.bfloat16
    for name in ("x_embedder.proj.weight", "y_embedder.embedding_table.weight"):
        assert parameters[name].dtype == torch.float32
    assert parameters["final_layer.linear.weight"].dtype == torch.float32


def test_time_that_runs_the_other_way_is_turned(run: Path) -> None:
    """Catches: official weights fed our time, and a convention of a later version guessed at."""
    x, t, y = inputs()
    ours = open_checkpoint(run).network("ema", CPU)
    rewrite(run, time_convention="reversed")
    theirs = open_checkpoint(run).network("ema", CPU)
    torch.testing.assert_close(theirs(x, t, y), -ours(x, 1 - t, y))
    rewrite(run, time_convention="sideways")
    with pytest.raises(SitError, match="time convention 'sideways'"):
        open_checkpoint(run).network("ema", CPU)


def test_imported_weights_may_be_of_one_kind(run: Path) -> None:
    """Catches: weights promised that are not there, and a training that goes on from them."""
    rewrite(run, lineage="repa")
    assert open_checkpoint(run).kinds == ["model", "ema"]
    (open_checkpoint(run).path / "model.safetensors").unlink()
    checkpoint = open_checkpoint(run)
    assert (checkpoint.kinds, checkpoint.trainable) == (["ema"], False)
    with pytest.raises(SitError, match="holds no model weights") as caught:
        checkpoint.weights("model")
    assert caught.value.hint == "use --weights ema"
    assert checkpoint.weights("ema").keys() == random_network(CONFIG).state_dict().keys()


def test_weights_of_another_network_are_one_line(run: Path) -> None:
    """Catches: torch's page of missing keys and sizes."""
    meta = open_checkpoint(run).meta["transformer"]
    rewrite(run, transformer=meta | {"depth": 3})
    with pytest.raises(SitError, match="do not fit the network") as caught:
        open_checkpoint(run).network("ema", CPU)
    assert "\n" not in caught.value.message


def test_the_loss_over_t_is_there_if_it_was_measured(run: Path) -> None:
    """Catches: a curve of zeros for a run that has measured nothing, and none for one that has."""
    rewrite(run, loss_by_t=dict(sums=[1.0, 6.0], counts=[2.0, 3.0]))
    curve = open_checkpoint(run).loss_curve
    assert tuple(curve.values) == pytest.approx((0.5, 2.0))
    rewrite(run, loss_by_t=dict(sums=[0.0, 0.0], counts=[0.0, 0.0]))
    assert open_checkpoint(run).loss_curve is None


def test_pictures_that_are_not_square_have_height_first(run: Path) -> None:
    """Catches: sides exchanged, or a number taken for a list."""
    rewrite(run, latents=open_checkpoint(run).latents | {"image_size": [8, 24]})
    assert open_checkpoint(run).image_size == (8, 24)


def test_a_run_without_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    """Catches: a traceback for a run that was killed before its first save."""
    (tmp_path / "run").mkdir()
    with pytest.raises(SitError, match="no complete checkpoint"):
        open_checkpoint(tmp_path / "run")
    run = make_run(tmp_path)
    rewrite(run, format="another")
    with pytest.raises(SitError, match="is not a checkpoint"):
        open_checkpoint(run)


def test_damaged_or_missing_checkpoints(run: Path, tmp_path: Path) -> None:
    """Catches: a traceback for a truncated file."""
    with pytest.raises(SitError, match="there is no run"):
        draw(tmp_path / "nothing" / "x", "out")
    weights = open_checkpoint(run).path / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SitError, match="cannot read"):
        draw(run, "out")
    assert draw(run, "live", weights="model").complete


@pytest.mark.parametrize("meta", ["", "[]", "{}", '{"format": "sit-checkpoint"}'])
def test_a_damaged_checkpoint_is_one_line(run: Path, meta: str) -> None:
    """Catches: a traceback from a meta.json that is cut short or was edited."""
    (run / "step-0000007" / "meta.json").write_text(meta)
    with pytest.raises(SitError, match=r"is damaged|is not a checkpoint"):
        plan(SampleSettings(checkpoint=run))


def test_missing_weights_are_named(run: Path) -> None:
    """Catches: no way out of a checkpoint that lost a file."""
    (run / "step-0000007" / "ema.safetensors").unlink()
    with pytest.raises(SitError, match=r"cannot read .*ema.safetensors: there is no such") as info:
        finish(sample(SampleSettings(checkpoint=run, out=run.parent / "s", num=2, steps=1)))
    assert "older step" in info.value.hint
