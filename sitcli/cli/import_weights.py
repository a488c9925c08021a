"""``sit import``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.weights import ImportSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "import", ImportSettings, dry_run=True, panel="Weights")
    def run(settings: ImportSettings, invocation: Invocation) -> None:
        """Turn published weights into a run, which every other command reads.

        It takes official SiT and DiT releases, checkpoints of their trainers, of fast-DiT and of
        REPA, DiT folders of diffusers, and files of sit export. Sizes are inferred from the
        tensors; process, direction of time and guided channels follow from the origin of the
        weights, and are shown. No code in the files is run.

        sit import SiT-XL-2-256x256.pt runs/sit-xl

        sit import 0400000.pt runs/mine --model SiT-B/2 --interpolant gvp

        sit import hf:facebook/DiT-XL-2-256 runs/dit-xl

        Then, as with any run:

        sit sample runs/sit-xl --cfg-scale 1.5 --classes 207,360 --vae sd-vae-ft-ema
        """
        from sitcli.commands.import_weights import import_weights, plan

        if invocation.dry_run:
            finish(plan(settings), invocation)
        else:
            finish(follow(import_weights(settings), title="import"), invocation)
