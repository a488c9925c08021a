"""Pictures and settings for the tests of `sit evaluate`, and what comes out of it."""

import numpy as np

from sitcli.commands.encode.stage import encode
from sitcli.events import Progress
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.evaluate import EvaluateSettings
from tests.tiny import write_folder, write_samples


def events_and_result(stage):
    """All events of a stage, and its result."""
    events = []
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            return events, end.value


def pixels(num, seed, side=8, shift=0):
    """Smooth pictures, so that their averages differ."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (num, 1, 1, 3)) + rng.integers(0, 40, (num, side, side, 3)) + shift
    return base.astype(np.uint8)


def pixel_settings(**more):
    return EvaluateSettings(features="pixels", device="cpu", **more)


def first_done(events):
    """Images that were done already when the stage began to count."""
    return next(event.done for event in events if isinstance(event, Progress))


def values(result):
    return {figure["metric"]: figure["value"] for figure in result.data["figures"]}


def make_pipeline(folder):
    """A class folder, its latent store and a sample set that names the store."""
    for name, seed in (("cat", 1), ("dog", 2)):
        write_folder(folder / "images" / name, pixels(12, seed))
    settings = EncodeSettings(
        source=folder / "images",
        out=folder / "out.h5",
        vae="pixels",
        image_size=8,
        device="cpu",
        workers=0,
    )
    events_and_result(encode(settings))
    write_samples(
        folder / "samples" / "a",
        pixels(20, 3),
        store=str(folder / "out.h5"),
        checkpoint="runs/a/step-0000010",
        mode="sde",
        solver="heun",
        wt="kl",
        cfg_scale=1.0,
        num=20,
    )
    return folder
