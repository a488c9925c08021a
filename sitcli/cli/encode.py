"""``sit encode-latents``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings import EncodeSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "encode-latents", EncodeSettings, dry_run=True, panel="Stages")
    def run(settings: EncodeSettings, invocation: Invocation) -> None:
        """TODO."""
        from sitcli.stages import encode as stage

        finish(follow(stage.encode(settings), title="encode"), invocation)
