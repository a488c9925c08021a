"""``sit evaluate``."""

from __future__ import annotations

import typer

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import finish, follow
from sitcli.settings.evaluate import EvaluateSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "evaluate", EvaluateSettings, dry_run=True, panel="Stages")
    def run(settings: EvaluateSettings, invocation: Invocation) -> None:
        """Measure how close samples are to real images.

        FID, sFID, Inception Score, KID, precision, recall, density and coverage on InceptionV3's
        features, each beside what as many real images get: images of the reference, compared with
        its others. Writes metrics.json beside the samples. Features are kept, so that a second
        metric is quick and an interrupted evaluation goes on when the command is typed again.

        The newest samples against the images their model was trained on:

        sit evaluate --fid --kid

        ADM's protocol, 50,000 samples against its reference batch:

        sit evaluate samples/xl --fid --sfid --isc --prc --reference VIRTUAL_imagenet256_labeled.npz

        Several sets in one table, with intervals; every checkpoint of a run, plotted:

        sit evaluate samples/ode samples/sde --all --bootstrap 50

        sit evaluate --history runs/xl --fid --num 5000

        A folder of pictures against another, without a download (not FID, and labelled so):

        sit evaluate drawn/ --reference photos/ --features pixels

        The likelihood under the newest model of 1,000 images it was not trained on, in bits per
        dimension (writes nll-STEP-STORE-HASH.json into the run):

        sit evaluate --nll --reference test.h5 --num 1000

        InceptionV3's weights are looked for where torch-fidelity keeps them. They are never
        fetched unasked: the error says how to fetch them. Pictures of a reference folder are
        centre-cropped to the samples' size, as sit encode-latents does. Sample sets and .npz files
        keep their size, which must be that of the samples, except for InceptionV3, which resizes
        all images.
        """
        if settings.history is not None and not settings.nll:
            from sitcli.commands.evaluate.history import history as stage
            from sitcli.commands.evaluate.history import plan
        elif settings.nll:
            from sitcli.commands.evaluate.likelihood import likelihood as stage
            from sitcli.commands.evaluate.likelihood import plan
        else:
            from sitcli.commands.evaluate.stage import evaluate as stage
            from sitcli.commands.evaluate.stage import plan

        if invocation.dry_run:
            finish(plan(settings), invocation)
        else:
            finish(follow(stage(settings), title="evaluate"), invocation)
