"""``sit encode-latents``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.encode import EncodeSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "encode-latents", EncodeSettings, dry_run=True, panel="Stages")
    def run(settings: EncodeSettings, invocation: Invocation) -> None:
        """Encode images into a latent store, the file that training reads.

        Interrupt it as you like: the same command goes on where it was, and the store ends up
        identical. Broken images are counted and named, not fatal.

        sit encode-latents imagenet/ out.h5

        sit encode-latents ILSVRC2012_img_train.tar out.h5 --vae stabilityai/sd-vae-ft-mse

        sit encode-latents cifar10.tar cifar10.h5 --vae pixels
        """
        from sitcli.commands.encode import stage as stage

        if invocation.dry_run:
            finish(stage.plan(settings, invocation.said), invocation)
        else:
            finish(follow(stage.encode(settings, invocation.said), title="encode"), invocation)
