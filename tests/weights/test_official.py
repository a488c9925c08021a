"""Official keys and shapes become a configuration, or an error that names the key."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sitcli.errors import SitError, UsageError
from sitcli.model.blocks import BLOCKS, MLPS, NORMS, QK_NORMS
from sitcli.model.config import PRESETS
from sitcli.model.transformer import Transformer
from sitcli.weights.official import config_of, infer_config, model_name, official_keys
from tests.model.networks import TINY, every_block
from tests.weights.official_files import CONFIG, bring, equal, official, save


@every_block
def test_config_is_inferred_from_shapes(block: str) -> None:
    """Catches: learned-sigma outputs, the class count or the block design read from a flag instead
    of the weights."""
    for classes in (0, 10):
        config = dataclasses.replace(TINY, num_classes=classes, block=block)
        assert infer_config(Transformer(config).state_dict(), heads=4) == config


def test_other_blocks_are_not_taken_for_one_of_ours() -> None:
    """Catches: weights with more or fewer layers in a block loaded as the next best design."""
    state = Transformer(TINY).state_dict()
    with pytest.raises(ValueError, match="no known design"):
        infer_config(state | {"blocks.0.attn.q_norm.weight": torch.ones(8)}, heads=4)
    del state["blocks.0.mlp.fc1.bias"]
    with pytest.raises(ValueError, match="no known design"):
        infer_config(state, heads=4)


def broken(key: str, change) -> dict[str, Tensor]:
    state = official()
    if change is None:
        del state[key]
    else:
        state[key] = change(state[key]) if callable(change) else change
    return state


WRONG = [
    (broken("blocks.1.mlp.fc1.weight", None), "no 'blocks.1.mlp.fc1.weight' (512 x 128)"),
    (broken("blocks.1.mlp.fc1.weight", lambda w: w[:, :7]),
     "'blocks.1.mlp.fc1.weight' is 512 x 7, not 512 x 128"),
    (broken("x_embedder.proj.weight", None), "no 'x_embedder.proj.weight'"),
    (broken("x_embedder.proj.weight", lambda w: w[..., 0]), "not width x channels x patch x patch"),
    (broken("final_layer.linear.bias", lambda b: b * float("nan")), "is not finite"),
    (broken("final_layer.linear.bias", lambda b: b.long()), "not floating point"),
    (broken("blocks.0.extra", torch.zeros(2, 3)), "known design"),
    (broken("extra", torch.zeros(2, 3)), "holds 'extra' (2 x 3)"),
    (broken("blocks.700.attn.qkv.bias", torch.zeros(3)), "too few for 701 blocks"),
    (broken("pos_embed", torch.zeros(1, 15, 128)), "no known grid"),
    ({}, "it holds no tensors"),
    ([1, 2], "it holds no tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_wrong_file_is_one_line_that_names_the_key(tmp_path: Path, content, message: str) -> None:
    """Catches: torch's page of keys, or a network that is not the file's."""
    file = save(tmp_path / "SiT-x.pt", content)
    with pytest.raises(SitError) as caught:
        bring(file, tmp_path / "run")
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrappers_prefixes_are_taken_off(prefix: str) -> None:
    """Catches: weights of DDP or torch.compile that are refused, or a key cut where it has the
    word itself."""
    state, extra = official(), {"projectors.0.weight": torch.ones(2)}
    wrapped = {prefix + key: value for key, value in {**state, **extra}.items()}
    found, aside = official_keys(wrapped)
    assert equal(found, state)
    assert equal(aside, extra)
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert official_keys(mixed)[0].keys() == mixed.keys()


def test_repas_older_files_go_on_counting_their_blocks() -> None:
    """Catches: the blocks after the projected one taken for the first, or refused."""
    state = official()
    older = {
        re.sub(r"^blocks\.([23])", lambda m: f"decoder_blocks.{int(m[1]) - 2}", key): value
        for key, value in state.items()
    }
    assert "decoder_blocks.1.attn.qkv.weight" in older
    assert equal(official_keys(older)[0], state)


@pytest.mark.parametrize("style", itertools.product(MLPS, NORMS, ["", *QK_NORMS]))
@pytest.mark.parametrize("block", BLOCKS)
def test_every_network_is_told_by_its_tensors(block: str, style: tuple[str, str, str]) -> None:
    """Catches: parts of a block taken for others of the same shape, and heads that the gains of
    queries and keys show, guessed."""
    mlp, norm, kind = style
    parts = dict(mlp=mlp, norm=norm, qk_norm=bool(kind), qk_kind=kind or "rms", block=block)
    config = dataclasses.replace(CONFIG, width=96, heads=6, **parts)
    heads = None if kind else 6
    assert config_of("x", official(config), heads=heads, model=None) == config


def test_heads_are_known_or_asked_for() -> None:
    """Catches: a number of heads guessed, whose network computes something else."""
    state = official()
    assert config_of("x", state, heads=None, model=None) == CONFIG
    assert config_of("x", state, heads=8, model=None).heads == 8
    odd = official(dataclasses.replace(CONFIG, width=96, heads=3))
    with pytest.raises(UsageError, match="no preset has width 96"):
        config_of("x", odd, heads=None, model=None)
    assert config_of("x", odd, heads=6, model=None).heads == 6
    with pytest.raises(UsageError, match="--model SiT-S/2 has 12 blocks"):
        config_of("x", state, heads=None, model="SiT-S/2")


@pytest.mark.parametrize("size", PRESETS)
def test_models_have_their_papers_names(size: str) -> None:
    """Catches: a preset told as a size of the user's own, or one of them told as a preset."""
    depth, width, heads = PRESETS[size]
    config = dataclasses.replace(CONFIG, depth=depth, width=width, heads=heads)
    assert model_name("SiT", config) == f"SiT-{size}/2"
    deeper = dataclasses.replace(config, depth=depth + 1)
    assert model_name("DiT", deeper) == f"DiT-{depth + 1}x{width}/2"
