"""Statistics of latents per channel, in the files that other projects keep beside their weights."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sitcli.errors import SitError
from sitcli.latents.scaling import Scaling, wrong_values
from sitcli.storage.untrusted import read_content

LIGHTNING = "latents_stats.pt"


class Names(NamedTuple):
    """The tensors in a file: of the shift, and of the factor or, `inverse`, of the std."""

    shift: str
    factor: str
    inverse: bool


# LightningDiT's datasets/img_latent_dataset.py and REPA-E's save_vae_weights.py.
MEAN_AND_STD = Names("mean", "std", inverse=True)
BIAS_AND_SCALE = Names("latents_bias", "latents_scale", inverse=False)


def statistics_beside(weights: Path, channels: int) -> Scaling | None:
    """The scaling in the statistics beside a file of weights, None if there are none.

    They are REPA-E's NAME-latents-stats.pt beside NAME.pt, or LightningDiT's latents_stats.pt.
    """
    of_repa_e = weights.with_name(f"{weights.stem}-latents-stats.pt")
    for path in (of_repa_e, weights.with_name(LIGHTNING)):
        if path.is_file():
            return read_statistics(path, channels)
    return None


def read_statistics(path: Path, channels: int) -> Scaling:
    """The scaling in a file of statistics. Raises SitError if it is not one for these channels."""
    content = read_content(path)
    names = next(
        (n for n in (MEAN_AND_STD, BIAS_AND_SCALE)
         if isinstance(content, dict) and n.shift in content and n.factor in content),
        None,
    )  # fmt: skip
    try:
        shift, factor = (content[n].double().flatten().tolist() for n in names[:2])
    except (TypeError, AttributeError):
        raise SitError(
            f"{path} holds no 'mean' and 'std', nor 'latents_bias' and 'latents_scale'",
            "remove it, or fetch it again",
        ) from None
    if (
        not len(shift) == len(factor) == channels
        or wrong_values(shift, channels, zero=True)
        or wrong_values(factor, channels, zero=False)
    ):
        raise SitError(
            f"{path} has {len(shift)} means and {len(factor)} standard deviations for {channels} "
            "channels, or numbers that are not finite",
            "remove it, or fetch it again",
        )
    return Scaling([1 / value for value in factor] if names.inverse else factor, shift)
