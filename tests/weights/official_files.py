"""Weights as the official trainers save them, through `sit import` and `sit export`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sitcli.commands.export import export
from sitcli.commands.import_weights import import_weights
from sitcli.commands.sample.stage import sample
from sitcli.model.config import TransformerConfig
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.settings.weights import ExportSettings, ImportSettings
from tests.tiny import finish, random_network

# Width 128 is a preset's, so that heads are known: 4 of them.
CONFIG = TransformerConfig(
    input_size=8, patch=2, channels=4, out_channels=8, width=128, depth=4, heads=4, num_classes=5
)


def official(config: TransformerConfig = CONFIG) -> dict[str, Tensor]:
    """Random weights as the official trainers save them: positions first."""
    state = random_network(config).state_dict()
    return {"pos_embed": state.pop("pos_embed"), **state}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def bring(weights: Path, out: Path, **more):
    finish(import_weights(ImportSettings(weights=weights, out_dir=out, **more)))
    return open_checkpoint(out)


def take(run: Path, out: Path, format: str, **more) -> Path:
    finish(export(ExportSettings(checkpoint=run, out=out, format=format, **more)))
    return out


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def draw_latents(run: Path, out: Path, **more) -> np.ndarray:
    settings = SampleSettings(
        checkpoint=run, out=out, latents_only=True, device="cpu", precision="fp32", **more
    )
    finish(sample(settings))
    return np.array(SampleSet.open(out).rows.array("latents"))


def trainer(**args) -> dict:
    """What the official trainers save, optimizer and all."""
    model, ema = official(), official()
    ema["x_embedder.proj.bias"] = ema["x_embedder.proj.bias"] + 1
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    return dict(model=model, ema=ema, opt=optimizer.state_dict(), args=argparse.Namespace(**args))
