"""`sit bench`: how fast this machine does what people wait for."""

from __future__ import annotations

import dataclasses

from sitcli.errors import UsageError
from sitcli.events import Stage
from sitcli.io.launch import quiet_libraries
from sitcli.settings import BenchSettings

# What each looks at, beside the rounds and the batch size; others are refused.
LOOKED_AT = {
    "train": ("model", "find_batch", "compile", "tread", "latents", "dir", "device", "precision"),
    "sample": ("model", "compile", "latents", "device", "precision"),
    "gemm": ("model", "latents", "device", "precision"),
    "encode": ("source", "vae", "image_size", "images", "dir", "device", "precision"),
    "loader": ("latents", "items", "files", "dir", "posterior", "cold", "workers"),
}
ALL = ("what", "batch_size", "rounds")


def bench(settings: BenchSettings) -> Stage:
    """Measure what settings.what names, in alternating rounds.

    Raises UsageError for an option that it does not look at.
    """
    for field in dataclasses.fields(settings):
        given = getattr(settings, field.name) != field.default
        if given and field.name not in (*ALL, *LOOKED_AT[settings.what]):
            flag = f"--{field.name.replace('_', '-')}"
            raise UsageError(f"{flag} means nothing to sit bench {settings.what}", "leave it out")
    quiet_libraries()
    if settings.what == "loader":
        from sitcli.stages.bench_loader import bench_loader

        return (yield from bench_loader(settings))
    if settings.what == "encode":
        from sitcli.stages.bench_encode import bench_encode

        return (yield from bench_encode(settings))
    from sitcli.stages import bench_network

    return (yield from bench_network.BENCHES[settings.what](settings))
