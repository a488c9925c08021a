"""``sit export``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.weights import ExportSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "export", ExportSettings, dry_run=True, panel="Weights")
    def run(settings: ExportSettings, invocation: Invocation) -> None:
        """Write a checkpoint as other implementations load it.

        official-sit and official-dit are state dicts under the official keys; the weights of a SiT
        run of ours are converted to the official direction of time. diffusers is a folder with a
        pipeline of its own, since a stock DiTTransformer2DModel embeds times differently:

        sit export runs/NAME weights.pt --format official-sit

        sit export runs/NAME folder --format diffusers

        DiffusionPipeline.from_pretrained("folder", custom_pipeline="folder",
        trust_remote_code=True) then loads it. If a layout cannot hold a checkpoint, the error
        gives the reason; --format safetensors holds everything, and sit import reads it back bit
        for bit.
        """
        from sitcli.commands.export import export, plan

        if invocation.dry_run:
            finish(plan(settings), invocation)
        else:
            finish(follow(export(settings), title="export"), invocation)
