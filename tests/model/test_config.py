"""Sizes and designs of networks, and what does not fit together."""

from __future__ import annotations

import dataclasses

import pytest

from sitcli.model.config import PRESETS, parse_model
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
