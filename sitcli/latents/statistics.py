"""Statistics of latents per channel, in the files that other projects keep beside their weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sitcli.errors import SitError
from sitcli.latents.scaling import Scaling, wrong_values
from sitcli.storage.untrusted import read_content

STATISTICS = "latents_stats.pt"  # as LightningDiT's trainer calls it


def statistics_beside(weights: Path, channels: int) -> Scaling | None:
    """The scaling in the statistics beside a file of weights, None if there are none.

    They are REPA-E's NAME-latents-stats.pt beside NAME.pt, or LightningDiT's latents_stats.pt.
    """
    of_repa_e = weights.with_name(f"{weights.stem}-latents-stats.pt")
    for path in (of_repa_e, weights.with_name(STATISTICS)):
        if path.is_file():
            return read_statistics(path, channels)
    return None


def read_statistics(path: Path, channels: int, *, multiplier: float = 1.0) -> Scaling:
    """The normalisation (latents - mean) / std * multiplier of a file of statistics.

    The file holds a number for each of the channels: `mean` and `std` as LightningDiT's, or
    `latents_bias` and `latents_scale`, which is 1 / std, as REPA-E's.
    Raises SitError for a file that does not.
    """
    content = read_content(path)
    content = content if isinstance(content, dict) else {}
    mean, std = content.get("mean"), content.get("std")
    if isinstance(scale := content.get("latents_scale"), Tensor):
        mean, std = content.get("latents_bias"), 1 / scale.double()
    found = standardising(mean, std, channels, multiplier)
    if found is None:
        raise SitError(
            f"{path} does not hold a mean and a positive std for each of {channels} channels",
            f"name LightningDiT's {STATISTICS} of these latents, or REPA-E's NAME-latents-stats.pt",
        )
    return found


def standardising(
    mean: object, std: object, channels: int, multiplier: float = 1.0
) -> Scaling | None:
    """The scaling by these tensors, None if they are not a mean and a positive std per channel."""
    parts = [part.flatten().tolist() if isinstance(part, Tensor) else [] for part in (mean, std)]
    if any(
        len(part) != channels or wrong_values(part, channels, zero=zero)
        for part, zero in zip(parts, (True, False), strict=True)
    ) or min(parts[1]) < 0:  # fmt: skip
        return None
    return Scaling([multiplier / s for s in parts[1]], parts[0])
