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
        """Measure how fast this machine trains, samples, encodes and reads.

        The figures are medians of alternating rounds. train and sample are compared with the
        matrix products of their own sizes, an upper bound on their speed; encode with the bare
        autoencoder; loader with a plain numpy memmap.

        sit bench train --model SiT-B/2 --batch-size 32

        sit bench train --find-batch

        sit bench sample --precision bf16 --compile on

        sit bench encode --source imagenet/ --vae stabilityai/sd-vae-ft-ema

        sit bench loader --latents in256.h5 --cold --json
        """
        from sitcli.commands.bench import stage as stage

        finish(follow(stage.bench(settings), title="bench"), invocation)
