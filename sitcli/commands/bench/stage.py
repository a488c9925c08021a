"""`sit bench`: runs one of the benchmarks."""

from __future__ import annotations

import dataclasses

from sitcli.commands.bench.products import gemm
from sitcli.commands.bench.sample import sample
from sitcli.commands.bench.train import train
from sitcli.errors import UsageError
from sitcli.events import Stage
from sitcli.machine.quiet import quiet_libraries
from sitcli.settings.tools import BenchSettings

# The options that each benchmark takes beside ALL; it refuses the others.
OPTIONS_OF = {
    "train": ("model", "find_batch", "compile", "tread", "latents", "dir", "device", "precision"),
    "sample": ("model", "compile", "latents", "device", "precision"),
    "gemm": ("model", "latents", "device", "precision"),
    "encode": ("source", "vae", "image_size", "images", "dir", "device", "precision"),
    "loader": ("latents", "items", "files", "dir", "posterior", "cold", "workers"),
}
ALL = ("what", "batch_size", "rounds")


def bench(settings: BenchSettings) -> Stage:
    """Measure what settings.what names, in alternating rounds.

    Raises UsageError for an option that has no effect on it.
    """
    for field in dataclasses.fields(settings):
        given = getattr(settings, field.name) != field.default
        if given and field.name not in (*ALL, *OPTIONS_OF[settings.what]):
            flag = f"--{field.name.replace('_', '-')}"
            raise UsageError(
                f"{flag} has no effect with sit bench {settings.what}", f"remove {flag}"
            )
    quiet_libraries()
    if settings.what == "loader":
        from sitcli.commands.bench.loader import bench_loader

        return (yield from bench_loader(settings))
    if settings.what == "encode":
        from sitcli.commands.bench.encode import bench_encode

        return (yield from bench_encode(settings))

    return (yield from BENCHES[settings.what](settings))


BENCHES = {"train": train, "sample": sample, "gemm": gemm}
