"""``sit sample``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.sample import SampleSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "sample", SampleSettings, dry_run=True, panel="Stages")
    def run(settings: SampleSettings, invocation: Invocation) -> None:
        """Draw images from a checkpoint.

        The same command goes on with the images that are missing. Image i depends on the seed and
        i alone, whatever the batch size.

        sit sample --sde --wt kl

        sit sample runs/NAME --num 50000 --cfg-scale 1.5 --npz

        sit sample runs/NAME/step-0010000 --classes 207,360 --solver dopri5 --show-path

        Follow real images to the noise that the model draws them from, and back, and measure the
        error of the round trip:

        sit sample --invert photos/ --solver heun --steps 100
        """
        arguments = (settings,) if settings.invert is not None else (settings, invocation.said)
        if settings.invert is not None:
            from sitcli.commands.sample.invert import invert as stage
            from sitcli.commands.sample.invert import plan
        else:
            from sitcli.commands.sample.stage import plan
            from sitcli.commands.sample.stage import sample as stage

        if invocation.dry_run:
            finish(plan(*arguments), invocation)
        else:
            finish(follow(stage(*arguments), title="sample"), invocation)
