"""A tiny network in training under DeepSpeed, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sitcli.engine.config import engine_config
from sitcli.engine.engine import join_group, make_engine, own_linear_function
from sitcli.engine.scaler import install_loss_scaler
from sitcli.machine.world import World
from tests.model.networks import TINY, filled

CPU, ALONE = torch.device("cpu"), World(0, 1)


@contextmanager
def engine(dtype: torch.dtype, *, zero: int, clip: float = 0.0) -> Iterator[Any]:
    """A tiny network in training, with the first weights always the same."""
    join_group(ALONE, CPU)
    config = engine_config(
        dtype=dtype, zero=zero, offload="none", micro_batch=4, accumulate=1, world=ALONE, clip=clip
    )
    with own_linear_function():
        made = make_engine(filled(TINY), config, device=CPU, lr=3e-3, beta2=0.95, weight_decay=0.0)
        install_loss_scaler(made)
        yield made
        made.destroy()


def train(engine: Any, steps: int) -> list[float]:
    """The losses of steps towards a fixed target."""
    random = torch.Generator().manual_seed(1)
    x, target = torch.randn(4, 4, 8, 8, generator=random), torch.randn(4, 8, 8, 8, generator=random)
    t, y, losses = torch.rand(4, generator=random), torch.arange(4), []
    for _ in range(steps):
        loss = (engine(x, t, y).float() - target).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    return losses
