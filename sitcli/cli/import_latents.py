"""``sit import-latents``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.latents import ImportLatentsSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "import-latents", ImportLatentsSettings, dry_run=True, panel="Stages")
    def run(settings: ImportLatentsSettings, invocation: Invocation) -> None:
        """Turn latents that another project wrote into a latent store, which training reads.

        It takes the folders of REPA and fast-DiT, LightningDiT's shards, and any array with
        labels. What each says of its scaling is checked against the values. Interrupt it as you
        like: the same command goes on where it was.

        sit import-latents repa/ out.h5

        sit import-latents lightningdit/imagenet_train_256 out.h5 --vae vavae.pt

        sit import-latents latents.npy out.h5 --labels labels.npy --scaling 0.18215
        """
        from sitcli.commands.import_latents import stage as stage

        if invocation.dry_run:
            finish(stage.plan(settings), invocation)
        else:
            finish(follow(stage.import_latents(settings), title="import"), invocation)
