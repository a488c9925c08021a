"""``sit bench``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.tools import BenchSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "bench", BenchSettings, panel="Tools")
    def run(settings: BenchSettings, invocation: Invocation) -> None:
        """Measure on this machine what people wait for, in alternating rounds; medians are shown.

        train and sample stand beside the matrix products of their own sizes, which nothing can be
        faster than; encode beside the bare autoencoder; loader beside a plain numpy memmap.

        sit bench train --model SiT-B/2 --batch-size 32

        sit bench train --find-batch

        sit bench sample --precision bf16 --compile on

        sit bench encode --source imagenet/ --vae stabilityai/sd-vae-ft-ema

        sit bench loader --latents in256.h5 --cold --json
        """
        from sitcli.commands.bench import stage as stage

        finish(follow(stage.bench(settings), title="bench"), invocation)
