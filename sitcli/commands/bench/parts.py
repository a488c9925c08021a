"""Where a forward pass spends its time, part by part."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sitcli.commands.bench.job import BenchJob
from sitcli.machine.devices import autocast
from sitcli.model.blocks import BLOCKS
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import Transformer
from sitcli.runs.checkpoint import build_network


def random_network(
    config: TransformerConfig, bench: BenchJob, *, training: bool = False
) -> Transformer:
    """A network of `config` with random weights: those of a new one would give zero as output.

    Its weights are float32 for training, and in the bench's dtype for evaluation.
    """
    network = Transformer(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    if training:
        return network.to(bench.device)
    dtype = bench.job.dtype
    return build_network(config, network.state_dict(), bench.device, dtype=dtype)


def random_inputs(bench: BenchJob) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, C, h, w), t (B,) and y (B,) of a batch, on the device."""
    config, batch = bench.job.config, bench.batch
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *config.latent_shape, generator=random)
    t = torch.rand(batch, generator=random)
    y = torch.randint(0, config.num_classes + 1, (batch,), generator=random)
    return x.to(bench.device), t.to(bench.device), y.to(bench.device)


# --- both -----------------------------------------------------------------------------------------


class _Nothing(nn.Module):
    """Takes the place of a part that is measured by itself."""

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        return x


def time_parts(bench: BenchJob, *, training: bool) -> dict[str, float]:
    """Part -> its seconds in all blocks, each part alone: forward, and in training backward."""
    config, batch, rounds = bench.job.config, bench.batch, bench.settings.rounds
    design = BLOCKS[config.block]
    ends = random_network(replace(config, depth=1), bench, training=training)
    block = ends.blocks[0]
    ends.blocks = nn.ModuleList()
    modulation, ends.modulation = ends.modulation or nn.Identity(), None
    attention, mlp = block.attn, block.mlp
    block.attn, block.mlp = _Nothing(), _Nothing()
    made = dict(device=bench.device, requires_grad=training)
    tokens = torch.randn(batch, config.tokens + design.appended, config.width, **made)
    t, y = torch.randn(2, batch, config.width, device=bench.device)
    condition = design.condition(tokens, t, y)[1]
    inputs = random_inputs(bench)
    if training and bench.job.compiled:
        attention, mlp, block = map(torch.compile, (attention, mlp, block))
    parts: dict[str, tuple[Callable[[], Tensor], int]] = {
        "attention": (lambda: attention(tokens), config.depth),
        "MLP": (lambda: mlp(tokens), config.depth),
        "modulation, norms, residuals": (
            lambda: block(tokens, modulation(condition)),
            config.depth,
        ),
        "embeddings, final layer": (lambda: ends(*inputs), 1),
    }

    def work(forward: Callable[[], Tensor]) -> None:
        with autocast(bench.device, bench.job.dtype), torch.set_grad_enabled(training):
            out = forward()
        if training:
            out.float().mean().backward()

    seconds = {}
    for name, (forward, times) in parts.items():
        work(forward)
        values = [bench.seconds(lambda forward=forward: work(forward)) for _ in range(rounds)]
        seconds[name] = times * statistics.median(values)
    return seconds
