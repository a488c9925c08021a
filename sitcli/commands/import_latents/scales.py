"""Whether latents have the scale that their source states."""

from __future__ import annotations

import numpy as np

from sitcli.commands.import_latents.source import Source
from sitcli.errors import UsageError
from sitcli.latents.scaling import Scaling

ROWS = 512  # looked at, spread evenly
# SD's latents have a std of 0.8 to 1 on photographs. Scaled by 0.18215 twice they have 0.16, and
# not at all 4.4: beyond these limits it is a mistake, within them it may be one.
LEAST, MOST = 0.5, 2.0
LEAST_CERTAIN, MOST_CERTAIN = 0.2, 4.0
MOST_MEAN = 0.5  # of a channel that statistics bring to mean 0


def questions(
    source: Source, given: Scaling | None, scaling: Scaling | None, *, stop: bool
) -> list[str]:
    """What is odd about some of the latents, a line each.

    given: how the source's values are scaled, None for not at all. scaling: how training scales
    the latents; None for statistics of their own, which fit by themselves.
    Raises UsageError with `stop` for a standard deviation that is certainly a mistake.
    """
    mean, std, negative = _moments(source, given)
    found = []
    if negative:
        found.append(
            f"{source.path}: {negative} holds negative standard deviations: is it a mean and "
            "standard deviation?"
        )
    if scaling is None:
        return found
    factor = np.asarray(scaling.factor)
    means, stds = (mean - np.asarray(scaling.shift)) * factor, std * np.abs(factor)
    if scaling.per_channel:
        off = np.maximum(np.abs(np.log(np.maximum(stds, 1e-9))), np.abs(means) / MOST_MEAN - 1)
        channel = int(off.argmax())
        size, center = float(stds[channel]), float(means[channel])
        what = f"channel {channel} has mean {center:.3g} and standard deviation {size:.3g}"
        fits = LEAST <= size <= MOST and abs(center) <= MOST_MEAN
    else:
        size = float(np.sqrt(np.mean(stds**2) + np.var(means)))
        what, fits = f"the latents have a standard deviation of {size:.3g}", LEAST <= size <= MOST
    if fits:
        return found
    as_scaled = "as their values are" if given is not None else f"by {scaling}"
    text = f"{source.path}: scaled {as_scaled}, {what} instead of about 1"
    if stop and not LEAST_CERTAIN <= size <= MOST_CERTAIN:
        other = "scaled, if they are already" if given is None else "unscaled, if they are not"
        raise UsageError(
            text,
            f"add --values {other}, another --scaling, --normalize channels, or --no-check",
        )
    return [*found, text]


def _moments(source: Source, given: Scaling | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Mean and std (C,) of some latents, the posterior's spread included, and the name of a row
    with negative standard deviations, "" if there is none."""
    total, squares = np.zeros(source.channels), np.zeros(source.channels)
    chosen = np.unique(np.linspace(0, len(source) - 1, min(ROWS, len(source))).astype(int))
    negative = ""
    for row in map(int, chosen):
        values = source.read(0, row, row + 1, given=given).double().numpy()
        total += values[:, : source.channels].mean((0, 2, 3))
        power = np.square(values).mean((0, 2, 3))
        squares += power.reshape(-1, source.channels).sum(0)
        if source.moments and not negative and values[:, source.channels :].min() < 0:
            negative = source.names[row]
    mean = total / len(chosen)
    return mean, np.sqrt(np.maximum(squares / len(chosen) - mean**2, 0)), negative
