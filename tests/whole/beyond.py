"""A run that has everything beyond the papers, and samples of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sitcli.commands.sample.stage import sample
from sitcli.commands.train.stage import train
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from tests.tiny import finish, make_store, train_settings

EVERYTHING: dict[str, Any] = dict(
    depth=4, mlp="swiglu", norm="rms", rope=True, qk_norm=True, t_dist="logit-normal",
    t_dist_until=2, t_shift="0.5", direction_loss=0.5, layer_sync=0.2, internal_guidance=0.5,
    tread=0.5, power_ema=True,
)  # fmt: skip


def drawn(run: Path, out: Path, **options: Any) -> SampleSet:
    more = dict(num=4, steps=4, device="cpu", precision="fp32", latents=True) | options
    return SampleSet.open(finish(sample(SampleSettings(checkpoint=run, out=out, **more))).path)


def train_with_everything(folder: Path) -> Path:
    """A run of six steps, a checkpoint each, of which two are kept."""
    latents = make_store(folder / "tiny.h5").path
    options = dict(steps=6, save_every=1, keep=2, **EVERYTHING)
    finish(train(train_settings(latents, folder / "run", **options)))
    return folder / "run"
