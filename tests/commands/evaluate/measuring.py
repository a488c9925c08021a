"""Pictures and settings for the tests of `sit evaluate`, and what comes out of it."""

import numpy as np

from sitcli.events import Progress
from sitcli.settings.evaluate import EvaluateSettings


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
