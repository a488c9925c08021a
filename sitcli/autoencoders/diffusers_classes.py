"""The autoencoder classes of diffusers that sit knows, a row each: how each encodes and decodes.

Where a class leaves it to the pipeline to normalise or reshape its latents, the row does what
diffusers' own pipeline of that class does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sitcli.errors import SitError
from sitcli.latents.scaling import Scaling, wrong_values


class Row(NamedTuple):
    """kind: in a spec. since: the first version of diffusers that has the class.

    channels, downsample: functions of the config, of a latent position as training sees it.
    encode(network, images): latents (B, C, h, w), or mean and std (B, 2C, h, w) of a posterior.
    decode(network, latents): images in [-1, 1]. scaling(network, name): how training scales the
    latents. transformers: whether it needs that library. image_size(network): the one side in
    pixels that it takes, None if any.
    """

    kind: str
    since: str
    encode: Callable[[Any, Tensor], Tensor]
    downsample: Callable[[Any], int]
    decode: Callable[[Any, Tensor], Tensor] = lambda network, z: network.decode(z).sample
    channels: Callable[[Any], int] = lambda config: config.latent_channels
    scaling: Callable[[Any, str], Scaling] = lambda network, name: config_scaling(
        network.config, network.config.latent_channels, name
    )
    deterministic: bool = False
    transformers: bool = False
    image_size: Callable[[Any], int | None] = lambda network: None


def config_scaling(config: Mapping[str, Any], channels: int, name: str) -> Scaling:
    """The scaling that a config.json of diffusers states for latents of so many channels.

    Raises SitError for one that states two shifts, or statistics that are not numbers.
    """
    factor = float(config.get("scaling_factor") or 1.0)
    shift = float(config.get("shift_factor") or 0.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None and std is None:
        return Scaling(factor, shift)
    mean = [0.0] * channels if mean is None else mean
    std = [1.0] * channels if std is None else std
    lists = isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple))
    if (
        not lists
        or not len(mean) == len(std) == channels
        or wrong_values(mean, channels, zero=True)
        or wrong_values(std, channels, zero=False)
    ):
        raise SitError(f"{name}: latents_mean and latents_std are not one number per channel")
    if shift:
        raise SitError(f"{name}: its config.json states both a shift_factor and a latents_mean")
    return Scaling([factor / s for s in std], list(mean))


def _moments(posterior: Any) -> Tensor:
    return torch.cat([posterior.mean.float(), posterior.logvar.float().mul(0.5).exp()], dim=1)


def _kl_moments(network: Any, images: Tensor) -> Tensor:
    return _moments(network.encode(images).latent_dist)


def _tiny_latents(network: Any, images: Tensor) -> Tensor:
    return network.encode(images).latents


def _dc_latents(network: Any, images: Tensor) -> Tensor:
    return network.encode(images).latent


def _frame_moments(network: Any, images: Tensor) -> Tensor:
    """An image is a video of one frame."""
    return _moments(network.encode(images.unsqueeze(2)).latent_dist).squeeze(2)


def _frame_pictures(network: Any, latents: Tensor) -> Tensor:
    return network.decode(latents.unsqueeze(2)).sample.squeeze(2)


def _flux2_moments(network: Any, images: Tensor) -> Tensor:
    """A channel's patch becomes channels, in order of its rows, for the mean and for the std."""
    moments = _kl_moments(network, images)
    return torch.nn.functional.pixel_unshuffle(moments, network.config.patch_size[0])


def _flux2_pictures(network: Any, latents: Tensor) -> Tensor:
    patches = torch.nn.functional.pixel_shuffle(latents, network.config.patch_size[0])
    return network.decode(patches).sample


def _flux2_scaling(network: Any, name: str) -> Scaling:
    """Flux2Pipeline takes the statistics of the batch norm that was trained beside the VAE."""
    std = (network.bn.running_var.double() + network.config.batch_norm_eps).sqrt()
    return Scaling((1 / std).tolist(), network.bn.running_mean.double().tolist())


def _rae_latents(network: Any, images: Tensor) -> Tensor:
    return network.encode(images.add(1).div(2)).latent  # it takes images in [0, 1]


def _rae_pictures(network: Any, latents: Tensor) -> Tensor:
    return network.decode(latents).sample.mul(2).sub(1)


def _halvings(name: str) -> Callable[[Any], int]:
    """Every stage but the last halves the picture."""
    return lambda config: 2 ** (len(config[name]) - 1)


def _wan_downsample(config: Any) -> int:
    return _halvings("dim_mult")(config) * (config.get("patch_size") or 1)


def _video_scaling(network: Any, name: str) -> Scaling:
    return config_scaling(network.config, network.config.z_dim, name)


VIDEO = dict(
    encode=_frame_moments,
    decode=_frame_pictures,
    channels=lambda config: config.z_dim,
    scaling=_video_scaling,
)
ROWS: dict[str, Row] = {
    "AutoencoderKL": Row("kl", "0.34", _kl_moments, _halvings("block_out_channels")),
    "AutoencoderTiny": Row(
        "tiny", "0.34", _tiny_latents, _halvings("encoder_block_out_channels"), deterministic=True
    ),
    "AutoencoderDC": Row(
        "dc", "0.34", _dc_latents, _halvings("encoder_block_out_channels"), deterministic=True
    ),
    "AutoencoderKLFlux2": Row(
        "kl-flux2",
        "0.36",
        _flux2_moments,
        lambda config: _halvings("block_out_channels")(config) * config.patch_size[0],
        decode=_flux2_pictures,
        channels=lambda config: config.latent_channels * config.patch_size[0] ** 2,
        scaling=_flux2_scaling,
    ),
    "AutoencoderKLQwenImage": Row(
        "kl-qwenimage", "0.35", downsample=_halvings("dim_mult"), **VIDEO
    ),
    "AutoencoderKLWan": Row("kl-wan", "0.34", downsample=_wan_downsample, **VIDEO),
    # Its encode and decode normalise, so that latents_mean in its config is no shift of ours.
    "AutoencoderRAE": Row(
        "rae",
        "0.37",
        _rae_latents,
        lambda config: config.patch_size,
        decode=_rae_pictures,
        channels=lambda config: config.encoder_hidden_size,
        scaling=lambda network, name: Scaling(),
        deterministic=True,
        transformers=True,
        image_size=lambda network: network.decoder_image_size,
    ),
}
# The kind in a spec, by class.
KINDS = {name: row.kind for name, row in ROWS.items()}
