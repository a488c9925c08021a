"""KL autoencoders under CompVis' keys: Stable Diffusion's, VA-VAE, and those of REPA-E."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sitcli.autoencoders.base import Autoencoder, Family
from sitcli.autoencoders.diffusers_vae import quiet, wrap
from sitcli.errors import SitError
from sitcli.latents.statistics import statistics_beside

ORIGINAL_KEY = "encoder.down.0.block.0.conv1.weight"
PREFIXES = ("first_stage_model.", "vae.", "")
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# The configuration of the original kl-f8 VAE of Stable Diffusion 1 and 2 (sd-vae-ft-ema, -mse).
SD_VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# f16d32, with attention beside every residual block at the lowest resolution: VA-VAE's
# (github.com/hustvl/LightningDiT, tokenizer/configs/vavae_f16d32.yaml) and REPA-E's IN-VAE.
F16D32_CONFIG = SD_VAE_CONFIG | {
    "block_out_channels": [128, 128, 256, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
    "latent_channels": 32,
    "scaling_factor": 1.0,
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4,
}
KNOWN = "a Stable Diffusion 1 or 2 VAE (4 channels, 8 pixels a latent)"


def is_original(weights: dict[str, Tensor]) -> bool:
    """Whether the tensors include those of an original (CompVis) KL autoencoder.

    Keys as in ``encoder.down.0.block.0.conv1.weight``, perhaps below ``first_stage_model.``.
    """
    return any(key.endswith(ORIGINAL_KEY) for key in weights)


def load_original(
    path: Path, weights: dict[str, Tensor], *, device: torch.device, dtype: torch.dtype
) -> Autoencoder:
    """An original VAE: of Stable Diffusion 1 or 2 (f8, 4 channels), or f16d32 as VA-VAE.

    The file does not hold its scaling: Stable Diffusion's is 0.18215 (SDXL's VAE, of the same
    shape, needs its diffusers folder); statistics beside the file say it for the others.
    Raises SitError for an autoencoder of another shape.
    """
    prefix = next(p for p in PREFIXES if f"{p}{ORIGINAL_KEY}" in weights or not p)
    own = {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        if key.startswith(tuple(prefix + part for part in PARTS))
    }
    network = next(
        filter(None, (_built(config, own) for config in (SD_VAE_CONFIG, F16D32_CONFIG))), None
    )
    if network is None:
        raise SitError(
            f"{path} is not {KNOWN}, nor an f16d32 as VA-VAE",
            "use the diffusers folder of this autoencoder, with its config.json",
        )
    scaling = statistics_beside(path, network.config.latent_channels)
    return wrap(network, str(path.resolve()), device=device, dtype=dtype, scaling=scaling)


def _built(config: dict[str, Any], weights: dict[str, Tensor]) -> Any | None:
    """The network of this configuration with these weights; None if they do not fit it."""
    quiet()
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network = AutoencoderKL.from_config(config)
    stages = len(config["block_out_channels"])
    renamed = {to_diffusers(key, stages): value for key, value in weights.items()}
    expected = network.state_dict()
    if renamed.keys() != expected.keys():
        return None
    for key, value in renamed.items():
        shape = expected[key].shape
        # Attention's 1 x 1 convolutions are linear maps in diffusers.
        renamed[key] = value.flatten(1) if value.shape == (*shape, 1, 1) else value
        if renamed[key].shape != shape:
            return None
    network.load_state_dict(renamed, assign=True)
    return network


RENAMED = (
    (r"\bmid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}"),
    (r"\bmid\.attn_1\b", "mid_block.attentions.0"),
    (r"\bdown\.(\d+)\.", r"down_blocks.\1."),
    (r"\bdownsample\.", "downsamplers.0."),
    (r"\bupsample\.", "upsamplers.0."),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\bnin_shortcut\b", "conv_shortcut"),
    (r"(coder\.)norm_out\b", r"\1conv_norm_out"),
    (r"(attentions\.\d+)\.norm\b", r"\1.group_norm"),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)  # fmt: skip


def to_diffusers(key: str, stages: int) -> str:
    """CompVis' name of a tensor -> diffusers'. CompVis numbers the decoder's stages backwards."""
    key = re.sub(r"\bup\.(\d+)\.", lambda m: f"up_blocks.{stages - 1 - int(m[1])}.", key)
    for pattern, name in RENAMED:
        key = re.sub(pattern, name, key)
    return key


# An original VAE, which comes without a config.json.
ORIGINAL = Family(
    in_file=lambda path, weights: is_original(weights),
    in_folder=lambda path: None,
    load=lambda path, weights, *, name, device, dtype: load_original(
        path, weights, device=device, dtype=dtype
    ),
)
