"""``sit train``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings import TrainSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "train", TrainSettings, dry_run=True, panel="Stages")
    def run(settings: TrainSettings, invocation: Invocation) -> None:
        """TODO."""
        from sitcli.stages import train as stage

        finish(follow(stage.train(settings), title="train"), invocation)
