"""Latents as other projects write them, of values that their scaling fits, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sitcli.commands.import_latents.stage import import_latents
from sitcli.events import Event, Result
from sitcli.latents.store import LatentStore
from sitcli.settings.latents import ImportLatentsSettings

NUM, SIDE = 12, 4
LABELS = [n % 3 for n in range(NUM)]
SD = 0.18215


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_repa(folder: Path, labels: list | None = LABELS) -> np.ndarray:
    """REPA's vae-sd/; returns mean and std (N, 8, h, w)."""
    values = np.concatenate(
        [normal(NUM, 4, SIDE, SIDE) / SD, np.abs(normal(NUM, 4, SIDE, SIDE, seed=1))], axis=1
    ).astype(np.float32)
    names = [f"{i // 8:05d}/img-mean-std-{i:08d}.npy" for i in range(NUM)]
    for name, row in zip(names, values, strict=True):
        (folder / "vae-sd" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "vae-sd" / name, row)
    pairs = None if labels is None else [list(p) for p in zip(names, labels, strict=True)]
    (folder / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return values


def write_fast_dit(folder: Path) -> np.ndarray:
    """fast-DiT's features; returns the scaled values (N, 4, h, w)."""
    values = normal(NUM, 4, SIDE, SIDE)
    for what in ("features", "labels"):
        (folder / f"imagenet256_{what}").mkdir(parents=True)
    for i, row in enumerate(values):
        np.save(folder / "imagenet256_features" / f"{i}.npy", row[None])
        np.save(folder / "imagenet256_labels" / f"{i}.npy", np.array([LABELS[i]]))
    return values


def write_shards(folder: Path, *, channels: int = 32, statistics: bool = True) -> torch.Tensor:
    """LightningDiT's shards of 7 and 5 images; returns images and mirrored (2, N, C, h, w)."""
    folder.mkdir()
    values = torch.from_numpy(normal(2, NUM, channels, SIDE, SIDE)) * 3 + 1
    for number, part in enumerate((slice(0, 7), slice(7, NUM))):
        shard = dict(latents=values[0, part], latents_flip=values[1, part],
                     labels=torch.tensor(LABELS[part]))  # fmt: skip
        save_file({k: v.contiguous() for k, v in shard.items()},
                  folder / f"latents_rank00_shard{number:03d}.safetensors")  # fmt: skip
    if statistics:
        std, mean = torch.std_mean(values[0], (0, 2, 3), keepdim=True)
        torch.save({"mean": mean, "std": std}, folder / "latents_stats.pt")
    return values


def settings_for(source: Path, out: Path, **more) -> ImportLatentsSettings:
    return ImportLatentsSettings(source=source, out=out, **more)


def imported(source: Path, out: Path, **more) -> tuple[Result, list[Event]]:
    """(result, events) of the whole stage."""
    stage, events = import_latents(settings_for(source, out, **more)), []
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            return end.value, events


def store_of(source: Path, out: Path, **more) -> LatentStore:
    imported(source, out, **more)
    return LatentStore.open(out)


def half(values) -> np.ndarray:
    return np.asarray(values).astype(np.float16)
