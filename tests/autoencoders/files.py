"""Pictures, a tiny network and weight files that the tests of autoencoders share."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch


def smooth_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random low-frequency pictures (N, size, size, 3) uint8: compressible, as photographs are."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return fine.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def tiny_kl(**config) -> torch.nn.Module:
    """A random AutoencoderKL of two stages: downsample 2, 4 latent channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        norm_num_groups=4,
        **{"latent_channels": 4, **config},
    ).eval()


def write_taesd(folder: Path, network: torch.nn.Module, name: str = "taesd") -> tuple[Path, Path]:
    """An AutoencoderTiny's weights as TAESD's own pair of files; its decoder begins at layer 1."""
    paths = folder / f"{name}_encoder.pth", folder / f"{name}_decoder.pth"
    torch.save(network.encoder.layers.state_dict(), paths[0])
    decoder = network.decoder.layers.state_dict()
    shifted = {re.sub(r"^\d+", lambda m: str(int(m[0]) + 1), k): v for k, v in decoder.items()}
    torch.save(shifted, paths[1])
    return paths
