"""``sit bench``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings import BenchSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "bench", BenchSettings, panel="Tools")
    def run(settings: BenchSettings, invocation: Invocation) -> None:
        """Measure what training waits for on this machine.

        loader: images/s of shuffled batches from a latent store, beside a plain numpy memmap of
        the same bytes. Everything is measured in alternating rounds; the figures are medians.

        sit bench loader

        sit bench loader --items 200000 --workers 4

        sit bench loader --latents in256.h5 --cold --json
        """
        from sitcli.stages import bench as stage

        finish(follow(stage.bench(settings), title="bench"), invocation)
