"""``sit ema``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.weights import EmaSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "ema", EmaSettings, dry_run=True, panel="Tools")
    def run(settings: EmaSettings, invocation: Invocation) -> None:
        """Make average weights of any length after training, to try which length suits.

        It combines the two averages that a run trained with --power-ema keeps for every
        checkpoint, even for removed ones. The result is a run to sample, evaluate and export.

        sit ema runs/NAME --std 0.08

        sit sample runs/NAME-ema0.080
        """
        from sitcli.commands import ema as stage

        if invocation.dry_run:
            finish(stage.plan(settings), invocation)
        else:
            finish(follow(stage.average(settings), title="ema"), invocation)
