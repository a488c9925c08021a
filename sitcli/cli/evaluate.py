"""``sit evaluate``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings import EvaluateSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "evaluate", EvaluateSettings, dry_run=True, panel="Stages")
    def run(settings: EvaluateSettings, invocation: Invocation) -> None:
        """TODO."""
        from sitcli.stages import evaluate as stage

        finish(follow(stage.evaluate(settings), title="evaluate"), invocation)
