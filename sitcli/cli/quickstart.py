"""``sit quickstart``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings import QuickstartSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "quickstart", QuickstartSettings, panel="Tools")
    def run(settings: QuickstartSettings, invocation: Invocation) -> None:
        """TODO."""
        from sitcli.stages import quickstart as stage

        finish(follow(stage.quickstart(settings), title="quickstart"), invocation)
