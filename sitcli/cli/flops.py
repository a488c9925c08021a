"""``sit flops``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings import FlopsSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "flops", FlopsSettings, panel="Tools")
    def run(settings: FlopsSettings, invocation: Invocation) -> None:
        """TODO."""
        from sitcli.stages import count as stage

        finish(follow(stage.count(settings), title="flops"), invocation)
