"""``sit inspect``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings import InspectSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "inspect", InspectSettings, panel="Tools")
    def run(settings: InspectSettings, invocation: Invocation) -> None:
        """TODO."""
        from sitcli.stages import inspect as stage

        finish(follow(stage.inspect(settings), title="inspect"), invocation)
