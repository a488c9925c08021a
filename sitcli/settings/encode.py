"""Settings of `sit encode-latents`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sitcli import names
from sitcli.settings.option import DEVICE_HELP, GPUS_HELP, PRECISION_HELP, PROCS_HELP, option


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Options of `sit encode-latents`."""

    source: Path = option(
        ...,
        "Images: a folder per class, a flat folder, a set with a dataset.json, a .tar or .zip of "
        "these, a tar of tars, or shards of WebDataset or parquet: a file, a folder or a pattern "
        "such as 'x-{000..146}.tar'.",
        argument=True,
    )
    out: Path = option(..., "The latent store to write, e.g. out.h5.", argument=True)
    vae: str = option(
        names.DEFAULT_VAE,
        "Autoencoder: a hub name or local folder of diffusers, a TAESD-style weights file or "
        "folder, a latent store made with it, or an embedded one that needs no download: pixels, "
        "patch-pca.",
        group="Autoencoder",
    )
    pca_patch: int | None = option(
        None, "patch-pca: side of a patch, in pixels. [default: 4]", group="Autoencoder", low=1
    )
    pca_channels: int | None = option(
        None,
        "patch-pca: principal components kept per patch. [default: 12]",
        group="Autoencoder",
        low=1,
    )
    image_size: int | None = option(
        None,
        "Side of the square images in pixels. [default: 256; 32 for the embedded autoencoders; "
        "with --vae STORE.h5 the store's]",
        group="Images",
        low=1,
    )
    crop: names.Crop = option(
        "adm",
        "adm: area-halve, resize the short side, centre crop, as ADM, DiT and SiT do; "
        "resize: stretch; none: every image must have the size already.",
        group="Images",
    )
    flip: bool = option(
        True, "Encode the mirrored images too (a VAE is not flip-equivariant).", group="Images"
    )
    labels: names.Labels = option(
        "auto",
        "auto: by the dataset.json beside the images (EDM2's, REPA's), the .cls or .json in shards "
        "or the column of a parquet, else by folders; folders: a class per folder; none: encode "
        "without classes.",
        group="Images",
    )
    normalize: names.Normalize = option(
        "autoencoder",
        "How training sees the latents: scaled as the autoencoder says, or channels: each channel "
        "to mean 0 and standard deviation 1 over these latents.",
        group="Autoencoder",
    )
    strict: bool = option(False, "Stop at the first broken image.", group="Images")
    align_features: str | None = option(
        None,
        "Keep features of every image too, for sit train --repa: dinov2, a timm model "
        "(timm:NAME), or a TorchScript FILE.pt that returns a map (B, D, rows, columns).",
        group="Features",
    )
    align_weights: Path | None = option(
        None,
        "Weights of dinov2 or the timm model, if they are not where torch hub or timm keep them.",
        group="Features",
    )
    overwrite: bool = option(
        False, "Replace OUT if it holds something else, or other images.", group="Running"
    )
    batch_size: int = option(16, "Images per autoencoder call.", group="Running", low=1)
    workers: int | None = option(
        None,
        "Processes that read images, for each that encodes. [default: processors - 1, at most 8, "
        "shared among those that encode]",
        group="Running",
        low=0,
    )
    gpus: int | None = option(None, GPUS_HELP, group="Running", low=1)
    procs: int | None = option(None, PROCS_HELP, group="Running", low=1)
    device: str = option("auto", DEVICE_HELP, group="Running")
    precision: names.Precision = option("auto", PRECISION_HELP, group="Running")
