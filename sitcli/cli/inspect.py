"""``sit inspect``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.tools import InspectSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "inspect", InspectSettings, panel="Tools")
    def run(settings: InspectSettings, invocation: Invocation) -> None:
        """Describe a latent store, run, checkpoint or sample set, and check whether it is whole.

        It shows shape, count, classes, autoencoder, settings, provenance and size, and the command
        that goes on with an unfinished one. --verify reads everything back and checks checksums,
        flags, labels, finite values, and that weights fit their network; the exit code is 1 if
        anything is wrong.

        sit inspect out.h5

        sit inspect out.h5 --verify --preview grid.png

        sit inspect runs/NAME

        sit inspect runs/NAME --plot --eta 0.01

        sit inspect samples/NAME --json | jq .meta
        """
        from sitcli.commands.inspect import stage as stage

        finish(follow(stage.inspect(settings), title="inspect"), invocation)
