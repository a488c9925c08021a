"""Tiny networks whose weights are all random, so that their outputs say something."""

from __future__ import annotations

import pytest
import torch

from sitcli.model.blocks import BLOCKS
from sitcli.model.config import PRESETS, TransformerConfig
from sitcli.model.transformer import Transformer

TINY = TransformerConfig(
    input_size=8, patch=2, channels=4, out_channels=8, width=32, depth=2, heads=4, num_classes=10
)


def filled(config: TransformerConfig, *, std: float = 0.1) -> Transformer:
    """A network whose zero-initialised layers are random too, so that outputs say something."""
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


every_block = pytest.mark.parametrize("block", BLOCKS)


def plain_config(**changes) -> TransformerConfig:
    shape = dict(
        input_size=8, patch=2, channels=3, out_channels=3, width=32, depth=4, heads=4, num_classes=5
    )
    return TransformerConfig(**{**shape, **changes})


def random_network(**changes) -> Transformer:
    """With random weights everywhere: at first all blocks are the identity."""
    return filled(plain_config(**changes), std=0.2).eval()


def some_inputs(number: int = 3):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(number, 3, 8, 8, generator=random)
    return x, torch.rand(number, generator=random), torch.arange(number)


def preset(size, patch, **changes):
    depth, width, heads = PRESETS[size]
    shape = dict(input_size=32, channels=4, out_channels=8, num_classes=1000)
    shape |= dict(patch=patch, depth=depth, width=width, heads=heads)
    return TransformerConfig(**(shape | changes))
