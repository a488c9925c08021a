"""``sit sample``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings import SampleSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "sample", SampleSettings, dry_run=True, panel="Stages")
    def run(settings: SampleSettings, invocation: Invocation) -> None:
        """TODO."""
        from sitcli.stages import sample as stage

        finish(follow(stage.sample(settings), title="sample"), invocation)
