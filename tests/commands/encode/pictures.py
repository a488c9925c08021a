"""Image files, and `sit encode-latents` run on them."""

import numpy as np
from PIL import Image

from sitcli.commands.encode.stage import encode
from sitcli.events import Note
from sitcli.settings.encode import EncodeSettings


def make_images(folder, *, num=10, classes=("cat", "dog"), side=40):
    """`num` noisy JPEG and PNG files, in turn in each class; returns the folder."""
    rng = np.random.default_rng(0)
    for i in range(num):
        pixels = rng.integers(0, 256, (side, side + i % 3, 3), np.uint8)
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:03}.{'jpg' if i % 2 else 'png'}")
    return folder


def settings_for(source, out, **changes):
    defaults = dict(vae="pixels", batch_size=4, workers=0, device="cpu")
    return EncodeSettings(source=source, out=out, **(defaults | changes))


def encoded(settings):
    """(result, events) of the whole stage."""
    stage, events = encode(settings), []
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            return end.value, events


def texts(events, kind=Note):
    return [event.text for event in events if isinstance(event, kind)]
