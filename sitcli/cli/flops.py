"""``sit flops``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.tools import FlopsSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "flops", FlopsSettings, panel="Tools")
    def run(settings: FlopsSettings, invocation: Invocation) -> None:
        """Parameters, GMACs and GFLOPs of every model, beside the paper's figures.

        Without MODEL: the twelve of the papers (a DiT and a SiT of one size cost the same), and the
        four block designs of the DiT paper. What the papers call "Gflops" are
        multiply-accumulates, the column GMACs; GFLOPs = 2 x GMACs.

        sit flops

        sit flops DiT-XL/2 --image-size 512 --guidance --sampling-steps 250

        sit flops DiT-XL/2 --block in-context

        sit flops SiT-Ti/4 --image-size 32 --downsample 1 --channels 3 --num-classes 10

        sit flops --json | jq '.models\\[] | {model, gmacs}'
        """
        from sitcli.commands import flops as stage

        finish(follow(stage.count(settings), title="flops"), invocation)
