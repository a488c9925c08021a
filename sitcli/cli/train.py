"""``sit train``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.train import TrainSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "train", TrainSettings, dry_run=True, panel="Stages")
    def run(settings: TrainSettings, invocation: Invocation) -> None:
        """Train a transformer on a latent store.

        The same command goes on where a killed one stopped: with the same losses to the last bit,
        or to rounding with another number of processes or another --zero. Ctrl-C and SIGTERM save
        first.

        sit train --interpolant gvp

        sit train --model SiT-B/2 --latents in256.h5 --steps 400000 --batch-size 256

        sit train --gpus 8 --model SiT-XL/2 --zero 2

        torchrun --nnodes 2 --nproc_per_node 8 ... -m -- sitcli train --model SiT-XL/2 --zero 2
        """
        from sitcli.commands.train import stage as stage

        if invocation.dry_run:
            finish(stage.plan(settings, invocation.said), invocation)
        else:
            finish(follow(stage.train(settings, invocation.said), title="train"), invocation)
