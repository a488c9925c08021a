"""Sizes and designs of networks, and what does not fit together."""

from __future__ import annotations

import dataclasses

import pytest

from sitcli.model.config import PRESETS, parse_model, projector_width
from tests.model.networks import TINY


@pytest.mark.parametrize("name", ["SiT-XXL/2", "SiT-S", "UViT-S/2", "SiT-S/0", "sit-s/2"])
def test_unknown_models_are_refused(name: str) -> None:
    """Catches: a misspelt model silently taken for another."""
    with pytest.raises(ValueError, match="no model"):
        parse_model(name)


def test_presets() -> None:
    """Catches: a preset's size changed by accident."""
    assert PRESETS["XL"] == (28, 1152, 16)
    assert parse_model("SiT-XL/2") == ("SiT", "XL", 2)


def test_sizes_that_do_not_fit_are_refused() -> None:
    """Catches: a floor division that silently drops pixels."""
    with pytest.raises(ValueError, match="patch"):
        dataclasses.replace(TINY, patch=3)
    with pytest.raises(ValueError, match="heads"):
        dataclasses.replace(TINY, heads=5)


def test_unknown_block_designs_are_refused() -> None:
    """Catches: a misspelt design found only when the network is built."""
    with pytest.raises(ValueError, match="no block design is called 'adaln0'"):
        dataclasses.replace(TINY, block="adaln0")


def test_parts_that_do_not_exist_are_refused() -> None:
    """Catches: embedders that a design's blocks cannot take, left unused."""
    with pytest.raises(ValueError, match="no embedders of their own"):
        dataclasses.replace(TINY, block="in-context", own_embedders=True)
    with pytest.raises(ValueError, match="no parts of a block"):
        dataclasses.replace(TINY, qk_kind="batch")


def test_sizes_are_the_papers() -> None:
    """Catches: a size changed by accident: depth, width and heads of DiT Table 1."""
    assert [PRESETS[size] for size in ("S", "B", "L", "XL")] == [
        (12, 384, 6),
        (12, 768, 12),
        (24, 1024, 16),
        (28, 1152, 16),
    ]


def test_heads_that_rope_cannot_turn_are_refused() -> None:
    """Catches: another divisor than the 4 of a quarter of the pairs for each axis."""
    assert dataclasses.replace(TINY, rope=True, heads=8).heads == 8  # 4 channels a head
    assert dataclasses.replace(TINY, rope=True, heads=2).heads == 2  # 16
    with pytest.raises(ValueError, match="multiple of 4 channels, not 36 / 6"):
        dataclasses.replace(TINY, rope=True, width=36, heads=6)
    assert dataclasses.replace(TINY, width=36, heads=6).width == 36


def test_blocks_that_are_not_there_are_refused() -> None:
    """Catches: a head after the last block, or an error that names the wrong count."""
    config = dataclasses.replace(TINY, depth=4)
    assert dataclasses.replace(config, aux_block=3).aux_block == 3
    with pytest.raises(ValueError, match="auxiliary block 4 is none of the first 3"):
        dataclasses.replace(config, aux_block=4)
    with pytest.raises(ValueError, match="aligned block -1"):
        dataclasses.replace(config, align_block=-1, align_width=8)


def test_what_follows_from_the_fields() -> None:
    """Catches: rows and columns exchanged, or a head that stays in the backbone."""
    config = dataclasses.replace(TINY, input_width=12, aux_block=1, mlp="swiglu", rope=True)
    assert (config.latent_shape, config.grid, config.tokens) == ((4, 8, 12), (4, 6), 24)
    assert config.backbone == dataclasses.replace(config, aux_block=0)
    assert config.beyond == ["SwiGLU", "RoPE"]
    assert TINY.beyond == []
    assert config.null_class == TINY.num_classes


def test_our_small_sizes() -> None:
    """Catches: a size changed by accident, with which a run of an older version does not go on."""
    assert PRESETS["Mi"] == (4, 128, 4)
    assert PRESETS["Ti"] == (6, 192, 3)


def test_the_projector_is_repas() -> None:
    """Catches: another width than REPA's 2048, or one that is wider than a narrow network needs."""
    assert projector_width(dataclasses.replace(TINY, width=1152, heads=16)) == 2048
    assert projector_width(dataclasses.replace(TINY, width=384, heads=6)) == 768


def test_both_sides_are_divided_by_the_patch() -> None:
    """Catches: rows or columns of latents that are cut off without a word."""
    with pytest.raises(ValueError, match="does not divide the latent side 9"):
        dataclasses.replace(TINY, input_size=9, input_width=8)
    with pytest.raises(ValueError, match="does not divide the latent side 9"):
        dataclasses.replace(TINY, input_size=8, input_width=9)


def test_a_configuration_does_not_change() -> None:
    """Catches: a field assigned after its check."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.width = 1
