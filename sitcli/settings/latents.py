"""Settings of `sit import-latents`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sitcli import names
from sitcli.settings.option import option


@dataclass(frozen=True, kw_only=True)
class ImportLatentsSettings:
    """Options of `sit import-latents`."""

    source: Path = option(
        ...,
        "REPA's folder with vae-sd/, fast-DiT's with imagenet256_features/, LightningDiT's with "
        ".safetensors shards, or one .npy, .npz, .safetensors or zarr of latents (N, C, h, w).",
        argument=True,
    )
    out: Path = option(..., "The latent store to write, e.g. out.h5.", argument=True)
    vae: str | None = option(
        None,
        "The autoencoder that made them, as in encode-latents. [default: REPA's and fast-DiT's, "
        "the SD VAE; else unknown: sit sample asks for it]",
        group="What they are",
    )
    scaling: str | None = option(
        None,
        "Training reads (latent - shift) x scaling: a number, or one per channel with commas "
        "between. [default: SRC's statistics, else the autoencoder's]",
        group="What they are",
    )
    shift: str | None = option(
        None, "The shift, a number or one per channel. [default: as --scaling]",
        group="What they are",
    )  # fmt: skip
    normalize: names.Normalize = option(
        "autoencoder",
        "autoencoder: by --scaling, SRC's statistics or the autoencoder; channels: each channel to "
        "mean 0 and standard deviation 1 over these latents.",
        group="What they are",
    )
    values: names.LatentValues = option(
        "auto",
        "scaled: SRC's values are multiplied already, as fast-DiT's; unscaled: they are as the "
        "autoencoder encoded them; auto: as its layout has them, an array unscaled.",
        group="What they are",
    )
    image_size: int | None = option(
        None,
        "Side of their images in pixels. [default: by the autoencoder; unknown, 8 pixels a latent, "
        "16 from 32 channels on]",
        group="What they are",
        low=1,
    )
    key: str | None = option(
        None, "Name of the latents' array in SRC. [default: the only one (N, C, h, w)]",
        group="What they are",
    )  # fmt: skip
    labels: str | None = option(
        None,
        "A file of labels (N,), the name of an array in SRC, or none. [default: as SRC has them]",
        group="Classes",
    )
    num_classes: int | None = option(
        None, "Number of classes. [default: the highest label and 1]", group="Classes", low=1
    )
    check: bool = option(
        True,
        "Stop if the standard deviation of the scaled latents is beyond 0.2 to 4.",
        group="Running",
    )
    overwrite: bool = option(False, "Replace OUT if it holds something else.", group="Running")
