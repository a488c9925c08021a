"""``sit quickstart``."""

from __future__ import annotations

import shlex

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow, say
from sitcli.settings.tools import QuickstartSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "quickstart", QuickstartSettings, panel="Tools")
    def run(settings: QuickstartSettings, invocation: Invocation) -> None:
        """See everything work in minutes: no data, no download, no GPU.

        Draws pictures of ten shapes, then runs the four stages on them, printing each command:
        encode-latents, train, sample and evaluate. Ends with a grid of pictures the model drew,
        one shape a row, and how far they are from the real ones. Stop it whenever you like; the
        same command goes on.

        sit quickstart

        sit quickstart somewhere --steps 6000
        """
        from sitcli.commands import quickstart as stage

        follow(stage.draw(settings), title="draw")
        for arguments in stage.commands(settings):
            say(f"$ sit {shlex.join(arguments)}")
            stage.run_command(arguments, settings.out)
        finish(stage.report(settings), invocation)
